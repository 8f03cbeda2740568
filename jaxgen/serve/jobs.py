"""Requests in the engine as seen from the event loop: events become choices; a way to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import numpy as np

from jaxgen.errors import ConfigError
from jaxgen.serve.answers import Choice, Row
from jaxgen.serve.requests import Ask
from jaxgen.serve.tickets import Delta, Event, Failed, Finished, Started
from jaxgen.text import batch_decoding, programs
from jaxgen.text.batch_decoding import Alternative
from jaxgen.text.batches import batch_size, pad
from jaxgen.text.programs import StepKind
from jaxgen.text.session import Session
from jaxgen.text.tool_calls import Part

Piece = tuple[Choice, bool, tuple[list[Part], list[Row]]]


class Job:
    """The texts of one request, as choices. Its listener is called in the engine's thread.

    seconds: after which texts end where they are.
    """

    def __init__(self, ask: Ask, seconds: float | None = None) -> None:
        self.ask, self.seconds = ask, seconds
        self.settings = ask.prompts[0].settings
        self.choices: dict[int, Choice] = {}
        self.prompt: dict[int, tuple[int, int]] = {}  # tokens of prompts, those that were cached
        self._each = self.settings.n_best or self.settings.draws_each  # before they are ranked
        self._left, self._given_up = self._each * len(ask.prompts), False
        self._tickets: list[Any] = []
        self.begun, self.first_seconds = time.monotonic(), 0.0  # until there is a token

    async def begin(self) -> None:
        """Submit, and wait for the first event: what is refused is so before anything is sent."""
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        await asyncio.to_thread(self._submit)  # structures are compiled there
        self._first = [await self._queue.get()]
        if isinstance(event := self._first[0][1], Failed):
            raise event.error

    def _submit(self) -> None:
        deadline = None if self.seconds is None else time.monotonic() + self.seconds
        detail = self.ask.detail
        if self.settings.best_of and detail is None:
            detail = 0  # texts are ranked by their log-probabilities
        about, engine = {"deadline": deadline, "detail": detail}, self.ask.served.engine
        try:
            for number, prompt in enumerate(self.ask.prompts):
                self._tickets.append(engine.submit(prompt, self._listener(number), **about))
                if self._given_up:
                    self.cancel()
                    return
        except BaseException:
            self.cancel()
            raise

    def _listener(self, number: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has been closed: nobody listens
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

        return listen

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield (choice, whether it is new, its new parts and tokens) until all have ended."""
        while self._left:
            number, event = self._first.pop() if self._first else await self._queue.get()
            if isinstance(event, Failed):
                raise event.error
            place = number * self._each + event.index
            is_new = place not in self.choices
            choice = self.choices.setdefault(place, Choice(self.ask, place))
            piece: Any = ([], [])
            if isinstance(event, Started):
                self.prompt[number] = (event.prompt_tokens, event.cached_tokens)
            elif isinstance(event, Delta):
                piece = choice.take(event.text, event.tokens, event.logprobs, event.top)
            else:
                assert isinstance(event, Finished)
                self._left -= 1
                piece = choice.finish(event.completion)
                self.prompt.setdefault(number, (event.completion.prompt_tokens, 0))
            if choice.num_tokens and not self.first_seconds:
                self.first_seconds = time.monotonic() - self.begun
            yield choice, is_new, piece

    def ranked(self) -> list[Choice]:
        """Return the choices in order, the best of each prompt if that was asked for."""
        rows = [self.choices[place] for place in sorted(self.choices)]
        if not self.settings.best_of:
            return rows
        best: list[Choice] = []
        for begin in range(0, len(rows), self._each):
            own = rows[begin : begin + self._each]
            done = [one.completion for one in own if one.completion is not None]
            for row in batch_decoding.rank(done, self.settings):
                best += [o for o in own if o.completion and o.completion.tokens is row.tokens]
        for index, choice in enumerate(best):
            choice.index = index
        return best

    def cancel(self) -> None:
        """Give up what has not ended; nothing where all has."""
        self._given_up = True
        for ticket in self._tickets:
            self.ask.served.engine.cancel(ticket)


async def run(served: Any, function: Callable[[Session], Any]) -> Any:
    """Return what a function of the session gives in the engine's thread."""
    return await asyncio.wrap_future(served.engine.run(function))


def prompt_scores(
    session: Session, prompts: list[list[int]], top: int, user: str | None = None
) -> list[tuple[list[float], list[Any]]]:
    """Return (log-probabilities, alternatives) of prompts' tokens but the first."""
    model, params = session.model, session.params
    if model.config.topology != "decoder":
        raise ConfigError("echo=True with logprobs needs a decoder")
    if user is not None and session.users is not None:
        params = session.users.params(params, [user])
    kind = StepKind(min(model.tokenizer.vocab_size, model.config.V))
    scored = []
    for ids in prompts:
        tokens, _ = pad([ids], size=batch_size(1))
        tokens = tokens[:, : max(model.config.longest, len(ids))]
        scores = programs.score_tokens(params, model.config, kind, tokens, None, None, top=top)
        logprobs, best_ids, best = (np.asarray(x)[0, : len(ids) - 1].tolist() for x in scores)
        rows = [list(map(Alternative, *pair)) for pair in zip(best_ids, best, strict=True)]
        scored.append((logprobs, rows))
    return scored
