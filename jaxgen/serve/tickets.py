"""What is handed in to the engine, and what it tells of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxgen.errors import BusyError
from jaxgen.text.batch_decoding import Alternative, Completion


class QueueFull(BusyError):  # noqa: N818
    """As many requests wait as may wait; try again later."""


class Draining(BusyError):  # noqa: N818
    """The engine ends, and takes nothing new."""


@dataclass(frozen=True)
class Started:
    """A text begins; of its prompt's tokens so many were in the prefix cache."""

    index: int
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Delta:
    """The next piece of a text. All pieces joined are its text; logprobs and top as asked for."""

    index: int
    text: str
    tokens: Sequence[int]
    logprobs: Sequence[float]
    top: Sequence[list[Alternative]]


@dataclass(frozen=True)
class Finished:
    """A text as a whole, as `Session.run` gives it."""

    index: int
    completion: Completion


@dataclass(frozen=True)
class Failed:
    """A text can't be made; the error is the one that `Session.run` raises."""

    index: int
    error: Exception


Event = Started | Delta | Finished | Failed
Listener = Callable[[Event], None]


@dataclass(eq=False)
class Ticket:
    """A prompt in the engine: its texts have the indices 0 to `texts` - 1.

    After `cancelled` its listener hears nothing more; error: what a listener raised, if it did;
    open: the indices of texts that have not ended.
    """

    listener: Listener
    texts: int
    deadline: int | float | None = None
    cancelled: bool = False
    error: Exception | None = None
    open: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.open = set(range(self.texts))

    def is_late(self, now: float) -> bool:
        """Return whether its time is over, or it is given up."""
        return self.cancelled or (self.deadline is not None and now >= self.deadline)

    def tell(self, event: Event) -> None:
        """Tell the listener; one that raises gives up its own request."""
        if self.cancelled or event.index not in self.open:
            return
        if isinstance(event, Finished | Failed):
            self.open.remove(event.index)
        try:
            self.listener(event)
        except Exception as error:  # of somebody else's code
            self.cancelled, self.error = True, error

    def fail(self, error: Exception) -> int:
        """Fail all texts that have not ended; return how many."""
        failed = sorted(self.open)
        for index in failed:
            self.tell(Failed(index, error))
        self.cancelled = True
        return len(failed)


class Stats(NamedTuple):
    """Numbers of an engine, since it began where they count."""

    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int  # of the prompts begun
    cached_tokens: int  # of them, those from the prefix cache
    generated_tokens: int
    steps: int  # of the model, over all rows
    prefix_hits: int  # prompts of which a part was cached
    compilations: int  # of programs for slots, after the warm-up
    other_compilations: int  # for texts that don't share slots
    queued: int  # texts that wait, those that don't share slots among them
    # Of a model whose texts share slots:
    slots: int = 0
    used: int = 0  # slots that decode
    rows: int = 0  # of the cache as it is, and the tokens of each
    capacity: int = 0
    prefix_blocks: int = 0  # held now


Counts = dict[str, int]
COUNTED = Stats._fields[: Stats._fields.index("queued")]
