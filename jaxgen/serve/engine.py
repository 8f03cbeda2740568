"""Continuous batching: one thread owns the device, and requests join and leave between chunks.

Each round reads pieces of waiting prompts, for about as long as a chunk takes, and decodes a chunk
of all rows. Requests are begun in the order in which they come. Each text is the one that
`Session.run` gives for its request alone. What can't share rows with others (beams and other
searches, drafts, guidance, encoder-decoders, see `slot_chain`) runs through the session, whole,
between two chunks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding.stop import check_string
from jaxgen.errors import ConfigError
from jaxgen.ops.cache import Store
from jaxgen.serve import compilations
from jaxgen.serve.rounds import Rounds
from jaxgen.serve.slots import Running, Slots
from jaxgen.serve.tickets import (
    COUNTED,
    Counts,
    Draining,
    Event,
    Listener,
    QueueFull,
    Stats,
    Ticket,
)
from jaxgen.serve.whole import Whole, Work, complete
from jaxgen.text.batch_decoding import pieces_for
from jaxgen.text.batches import Request
from jaxgen.text.prompts import Prompt, requests_of
from jaxgen.text.session import Session

T = TypeVar("T")
CONTEXT = 4096  # tokens of a row at most, where nobody says: each doubling compiles programs
__all__ = ["Draining", "Engine", "Event", "QueueFull", "Stats", "Ticket"]


class Engine:
    """Many requests to one model at a time.

    Args:
      session: the model.
      slots: texts that are decoded side by side.
      context: tokens of a prompt and its text at most; None: the model's, or 4096 if that is less.
      queue: texts that may wait beyond those.
      chunk: tokens of each row between two looks at new requests.
      piece: tokens of a prompt that are read at once between two chunks.
      cache: "int8" keeps a byte of each number of the key/value cache.
      prefix_tokens: tokens of earlier prompts and texts whose keys and values are kept, so that a
        prompt that begins alike need not be read again; 0 keeps none.
      lookup: tokens that each step reads ahead, copied from where the text began alike before, and
        keeps if they are what is drawn: fewer steps for texts that quote; 0: none.

    Example:
      >>> import threading
      >>> import jax, jaxgen
      >>> from jaxgen.serve.engine import Engine
      >>> from jaxgen.text.request import Generation
      >>> from jaxgen.text.session import Prompt
      >>> from jaxgen.tokens.plain import Bytes
      >>> config = jaxgen.ModelConfig(vocab_size=259, context=32, layers=1, d_model=8, heads=2)
      >>> jaxgen.save("served", config, jaxgen.init(config, jax.random.key(0)), tokenizer=Bytes())
      >>> session = jaxgen.open("served")
      >>> settings, events = Generation(max_new_tokens=4, seed=3), []
      >>> with Engine(session, slots=2) as engine:
      ...     ticket = engine.submit(Prompt("ab", settings), events.append)
      ...     engine.drain(60)
      True
      >>> events[-1].completion.text == session.generate("ab", settings)
      True
    """

    @arguments.checked(
        slots=at_least(1),
        context=at_least(2),
        queue=at_least(1),
        chunk=at_least(1),
        piece=at_least(1),
        prefix_tokens=at_least(0),
        lookup=at_least(0),
    )
    def __init__(
        self,
        session: Session,
        *,
        slots: int = 8,
        context: int | None = None,
        queue: int = 64,
        chunk: int = 8,
        piece: int = 64,
        cache: Store = "plain",
        prefix_tokens: int = 8192,
        lookup: int = 0,
    ) -> None:
        self.session, self.queue_size, users = session, queue, session.users
        if users is not None and users.bank.capacity - 1 < 2 * slots + 1:
            raise ConfigError(
                f"slots={slots} need room for {2 * slots + 1} adapters of users, not "
                f"{users.bank.capacity - 1}; open the session with capacity={2 * slots + 1}"
            )
        longest = session.config.longest
        if context is not None and context > longest:
            raise ConfigError(f"context={context} is more than the model's context={longest}")
        self.context = min(longest, CONTEXT) if context is None else context
        if lookup >= self.context:
            raise ConfigError(
                f"lookup={lookup} must be less than context={self.context}; guess fewer tokens"
            )
        about = {"count": slots, "context": self.context, "chunk": chunk, "piece": piece}
        about |= {"store": cache, "prefix_tokens": prefix_tokens, "lookup": lookup}
        self._counts: Counts = dict.fromkeys(COUNTED, 0)
        self._make_rounds = lambda: Rounds(Slots(session, **about), session.clock, self._counts)
        self._rounds = self._make_rounds() if _shares(session) else None
        if lookup and self._rounds is None:
            raise ConfigError(
                f"lookup={lookup}, but texts of this model share no slots, where it acts; leave it "
                f"out"
            )
        self._slot_count = slots
        self._waiting: deque[Running] = deque()
        self._whole: deque[Whole | Work] = deque()
        self._group: list[Whole | Work] = []  # of those, what runs now
        self._news = threading.Condition()
        self._owner = threading.Lock()  # of the device: the thread's, or the warm-up's
        self._thread: threading.Thread | None = None
        self._draining = self._closed = self._busy = False

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Return whether its thread runs, or may still be started."""
        return not self._closed and (self._thread is None or self._thread.is_alive())

    def warm_up(self, progress: Callable[[str], None] | None = None) -> None:
        """Compile every program for slots, after which serving compiles none.

        Args:
          progress: called with what is compiled next.
        """
        with self._owner:
            if self._rounds is None or self._rounds.members:
                return
            for line in self._rounds.slots.warm_up():
                if progress is not None:
                    progress(line)

    def submit(
        self,
        prompt: Prompt,
        listener: Listener,
        *,
        deadline: int | float | None = None,
        detail: int | None = None,
    ) -> Ticket:
        """Hand in a prompt, and return at once.

        It is checked here, in the caller's thread; its structure is compiled here, too.

        Args:
          prompt: a text or ids, settings, its number among the draws of its seed, and its user.
            Each of `settings.draws_each` texts has an index; best_of is left to the caller to rank.
          listener: called with each `Event`, in the engine's thread, which it must not hold up. If
            it raises, its request is given up.
          deadline: when `session.clock` says so, texts end with Reason.TIME as they are.
          detail: alternatives of each token to give with its log-probability; None: neither.

        Raises:
          ConfigError: for what `Session.run` refuses, or what is longer than the engine's context.
          QueueFull: if too many texts wait.
          Draining: after `drain` or `close`.
        """
        self._check_open()
        (requests,) = requests_of(self.session.model, [self.session.preferring(prompt)])
        requests = [self._within_context(prompt, one) for one in requests]
        settings = requests[0].settings
        if settings.policy is not None and detail is not None:
            raise ConfigError("top_logprobs and a policy exclude each other: they show its tokens")
        for string in settings.stop:  # it is searched on the host, whatever the length of all
            check_string(string)
            pieces_for(settings.stop, self.session.tokenizer)
        count = settings.n_best or 1 if settings.strategy == "beams" else len(requests)
        ticket = Ticket(listener, count, deadline)
        slots = None if self._rounds is None or not _draws(requests[0]) else self._rounds.slots
        texts = None if slots is None else slots.texts(ticket, requests, detail)
        entry = [Whole(ticket, prompt, requests, detail)] if texts is None else []
        self._enter(texts or [], entry)
        return ticket

    def run(self, function: Callable[[Session], T]) -> Future[T]:
        """Return the future result of a function of the session, run in the engine's thread.

        For all that is no text: embeddings, scores. Raises QueueFull and Draining as `submit`.
        """
        work = Work(function)
        self._enter([], [work])
        return work.future

    def cancel(self, ticket: Ticket) -> None:
        """Give up a prompt: its slots are free within a chunk, and its listener hears no more."""
        with self._news:
            ticket.cancelled = True
            self._news.notify_all()

    def drain(self, seconds: int | float) -> bool:
        """Refuse what is new, and return whether all that was there has ended within `seconds`."""
        with self._news:
            self._draining = True
            return self._news.wait_for(lambda: not self._has_work() and not self._busy, seconds)

    def close(self) -> None:
        """Give up all that is there, and end the thread."""
        with self._news:
            self._draining = self._closed = True
            for one in self._tickets():
                one.cancelled = True
            self._news.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def stats(self) -> Stats:
        """Return what it does and has done."""
        with self._news:
            about = {"queued": len(self._waiting) + len(self._whole)}
        rounds = self._rounds
        if rounds is not None:
            slots, about["queued"] = rounds.slots, about["queued"] + (rounds.staged is not None)
            about |= {"slots": slots.count, "used": len(slots.live), "rows": len(slots.running)}
            about |= {"capacity": slots.capacity, "prefix_blocks": len(slots.prefixes or ())}
        return Stats(**self._counts, **about)

    # In the caller's thread.

    def _check_open(self) -> None:
        if self._draining:
            raise Draining("the engine is shutting down; send the request to another server")

    def _within_context(self, prompt: Prompt, one: Request) -> Request:
        """Return a request that fits the engine's context; ConfigError for one that does not."""
        if self._rounds is None or self.context == self.session.config.longest:
            return one
        if one.settings.overflow == "slide":
            return one
        room = self.context - len(one.ids)
        asked = prompt.settings.max_new_tokens or prompt.settings.max_length
        if room < 1 or (asked and one.limit > room):
            raise ConfigError(
                f"prompt of {len(one.ids)} + {one.limit} new tokens exceed the engine's "
                f"context={self.context}; ask for less, or serve the model with a larger context"
            )
        return one._replace(limit=min(one.limit, room))

    def _enter(self, texts: list[Running], others: list[Any]) -> None:
        number = len(texts) + len(others)
        if number > self.queue_size:
            raise ConfigError(
                f"{number} texts at once are more than queue={self.queue_size} may wait; ask for "
                f"fewer, or raise queue"
            )
        with self._news:
            self._check_open()
            waiting = len(self._waiting) + len(self._whole)
            if waiting + number > self.queue_size:
                raise QueueFull(
                    f"{waiting} texts wait and queue={self.queue_size}; try again later"
                )
            self._waiting += texts
            self._whole += others
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
                self._thread.start()
            self._news.notify_all()

    def _tickets(self) -> Iterator[Ticket]:
        running = [] if self._rounds is None else self._rounds.members
        yield from (one.ticket for one in (*running, *self._waiting))
        yield from (one.ticket for one in (*self._whole, *self._group) if isinstance(one, Whole))

    def _has_work(self) -> bool:
        running = self._rounds is not None and self._rounds.members
        return bool(running or self._waiting or self._whole)

    # In the engine's thread.

    def _serve(self) -> None:
        while True:
            with self._news:
                self._busy = False
                self._news.notify_all()
                self._news.wait_for(lambda: self._has_work() or self._closed)
                if self._closed and not self._has_work():
                    return
                self._busy = True
            with self._owner:
                try:
                    self._round()
                except Exception as error:  # no memory, or a bug: others are served all the same
                    self._fail_all(error)

    def _round(self) -> None:
        if self._rounds is not None:
            with compilations.counted(self._counts, "compilations"):
                for one in self._late():
                    self._rounds.end_late(one)
                self._rounds.run(self._next)
        with compilations.counted(self._counts, "other_compilations"):
            self._run_whole()

    def _late(self) -> list[Running]:
        """Return texts that are given up, or late, and wait no more."""
        now = self.session.clock()
        with self._news:
            late = [one for one in self._waiting if one.ticket.is_late(now)]
            self._waiting = deque(one for one in self._waiting if one not in late)
        return late

    def _next(self) -> Running | None:
        with self._news:
            return self._waiting.popleft() if self._waiting else None

    def _run_whole(self) -> None:
        """Run the next function, or the next prompts that the session can decode together."""
        group = self._group
        with self._news:
            while (
                self._whole
                and len(group) < self._slot_count
                and (not group or _go_together(group[0], self._whole[0]))
            ):
                group.append(self._whole.popleft())
        if group and isinstance(group[0], Work):
            group[0].do(self.session)
        elif group:
            complete(self.session, [one for one in group if isinstance(one, Whole)], self._counts)
        self._group = []

    def _fail_all(self, error: Exception) -> None:
        """Fail what runs, and begin with empty slots: their cache may be lost.

        Where there can be none, fail all that waits as well: the engine has ended.
        """
        running = [] if self._rounds is None else [one.ticket for one in self._rounds.members]
        self._fail([*running, *self._group], error)
        self._group = []
        try:
            self._rounds = None if self._rounds is None else self._make_rounds()
        except Exception as again:
            with self._news:
                self._draining = self._closed = True
                waiting = [*(one.ticket for one in self._waiting), *self._whole]
                self._waiting.clear()
                self._whole.clear()
                self._rounds = None
            self._fail(waiting, again)

    def _fail(self, those: Sequence[Ticket | Whole | Work], error: Exception) -> None:
        for one in those:
            if isinstance(one, Work):
                one.fail(error)
            else:
                ticket = one.ticket if isinstance(one, Whole) else one
                self._counts["failed"] += ticket.fail(error)


def _shares(session: Session) -> bool:
    """Return whether a model's requests can share slots."""
    config = session.config
    return config.topology == "decoder" and config.head == "lm" and config.prompt != "both"


def _draws(request: Request) -> bool:
    """Return whether a request is decoded token by token, and for itself."""
    settings = request.settings
    special = settings.steered is not None or settings.dola is not None
    return settings.strategy == "draw" and settings.overflow != "slide" and not special


def _go_together(one: Whole | Work, other: Whole | Work) -> bool:
    return isinstance(one, Whole) and isinstance(other, Whole) and one.detail == other.detail
