"""Rounds: pieces of waiting prompts are read, then a chunk of all rows is decoded and told.

All of it happens in the engine's thread. Prompts are read for about as long as a chunk takes, so
that a long one holds up nobody by more than a chunk and a piece; and in the order in which they
came, the next one also while all slots are taken. A chunk is shorter where its steps are slow, so
that tokens come evenly; and where that lets somebody go on: one step while a text has no token yet,
and no more steps than the next slot to be free needs while somebody waits for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxgen.decoding.chain import NOT_FINITE
from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError, UserError
from jaxgen.ops.cache import Cache
from jaxgen.serve.slots import Running, Slots
from jaxgen.serve.tickets import Counts, Delta, Failed, Finished, Started

CHUNK_SECONDS = 0.1  # of a chunk, where that is several steps: what a chunk costs beside is 2 ms


class Rounds:
    """The texts that have left the queue; staged: the one whose prompt is read, and its row."""

    def __init__(self, slots: Slots, clock: Callable[[], float], counts: Counts) -> None:
        self.slots, self.clock, self.counts = slots, clock, counts
        self.staged: tuple[Running, Cache | None] | None = None
        self._step_seconds = 0.0

    @property
    def members(self) -> list[Running]:
        """Return all texts that have left the queue and have not ended."""
        return [*self.slots.live, *([self.staged[0]] if self.staged else [])]

    def run(self, take: Callable[[], Running | None]) -> None:
        """Run a round; take: the next text of the queue, None if there is none."""
        now = self.clock()
        for one in self.members:
            if one.ticket.is_late(now):
                self._remove(one)
                self.end_late(one)
        self._read_prompts(take)
        if self.slots.live:
            self._decode()

    def end_late(self, one: Running) -> None:
        """End a text that is given up, or whose time is over."""
        if one.ticket.cancelled:
            self.counts["cancelled"] += 1
        else:
            self._end(one, one.state.end(Reason.TIME), 0)

    def _remove(self, one: Running) -> None:
        if self.staged is not None and self.staged[0] is one:
            self.staged = None
        else:
            self.slots.leave(one)

    def _read_prompts(self, take: Callable[[], Running | None]) -> None:
        slots, begun = self.slots, self.clock()
        room = self._step_seconds * self._most_steps
        while True:
            before = self.clock()
            if self.staged is None:
                one = take()
                if one is None:
                    return
                self.staged = one, None
            one, row = self.staged
            try:  # it has a row of its own, so that its failure is nobody else's
                row = self._begin(one) if row is None else row
                row = row if slots.has_read(one) else slots.read(one, row)
            except Exception as error:
                self.staged = None
                self._fail(one, error)
                continue
            self.staged = one, row
            if slots.has_read(one):
                if slots.is_full:
                    return
                slots.join(one, row)
                self.staged = None
                one.ticket.tell(Started(one.index, len(one.prompt), one.cached))
            now = self.clock()
            if slots.live and now - begun + (now - before) > room:  # with one more as long
                return

    def _begin(self, one: Running) -> Cache:
        one.begun = self.clock()
        row = self.slots.begin(one)
        self.counts["prompt_tokens"] += len(one.prompt)
        self.counts["cached_tokens"] += one.cached
        self.counts["prefix_hits"] += one.cached > 0
        return row

    @property
    def _most_steps(self) -> int:
        """Return how many steps a chunk has that nobody waits for."""
        return min(self.slots.chunk, max(int(CHUNK_SECONDS / (self._step_seconds or 1e-9)), 1))

    def _steps(self) -> int:
        """Return how many steps the next chunk has."""
        live, chunk = self.slots.live, self._most_steps
        if not all(one.start for one in live):
            return 1
        waits = self.staged is not None and self.slots.is_full
        return min(chunk, min(one.left for one in live)) if waits else chunk

    def _decode(self) -> None:
        begun, steps = self.clock(), self._steps()
        for one in self.slots.orphans():
            self.slots.leave(one, keep=False)
            self._fail(one, ConfigError(f"user {one.user} has been removed"))
        if not self.slots.live:
            return
        decoded, members = self.slots.decode(steps)
        now = self.clock()
        self._step_seconds = (now - begun) / max(int(decoded.steps), 1)
        self.counts["steps"] += int(decoded.steps)
        for at, one in members:
            tokens, before = decoded.tokens[at], len(one.state.tokens)
            detail = None if one.detail is None else _narrowed(decoded, one.detail)
            if NOT_FINITE in tokens:
                about = (one.index, tokens, int(decoded.reason[at]), detail, at)
                try:
                    piece, ended = one.state.push_last(*about)
                except UserError as error:
                    self.slots.leave(one, keep=False)
                    self._fail(one, error)
                    continue
            else:
                tokens = tokens[: int(decoded.num_generated[at])].tolist()
                piece, ended = one.state.push(tokens, detail, at)
            one.learn(one.state.tokens[before:])
            self.counts["generated_tokens"] += len(one.state.tokens) - before
            limit = one.state.request.settings.max_seconds
            if ended is None and limit is not None and now - one.begun >= limit:
                ended, piece = Reason.TIME, piece + one.state.end(Reason.TIME)
            if ended is None:
                one.ticket.tell(_delta(one, piece, before))
            else:
                self.slots.leave(one)
                self._end(one, piece, before)

    def _end(self, one: Running, piece: str, before: int) -> None:
        if piece or len(one.state.tokens) > before:
            one.ticket.tell(_delta(one, piece, before))
        self.counts["finished"] += 1
        one.ticket.tell(Finished(one.index, one.state.completion()))

    def _fail(self, one: Running, error: Exception) -> None:
        self.counts["failed"] += 1
        one.ticket.tell(Failed(one.index, error))


def _delta(one: Running, piece: str, before: int) -> Delta:
    """Return the piece of a text with the tokens that it did not have `before`."""
    state = one.state
    return Delta(
        one.index, piece, state.tokens[before:], state.logprobs[before:], state.top[before:]
    )


def _narrowed(found: Any, detail: int) -> Any:
    """Return a Decoded with fewer alternatives."""
    return found._replace(
        top_ids=found.top_ids[..., :detail], top_logprobs=found.top_logprobs[..., :detail]
    )
