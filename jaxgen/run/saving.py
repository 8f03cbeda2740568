"""What a run saves with its state, and when it must not lose it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

from jaxgen import data
from jaxgen.run.privacy import Budget
from jaxgen.store import Checkpoints
from jaxgen.train.log import Log, Mute
from jaxgen.train.state import State


@dataclass(frozen=True)
class Saver:
    """Saves the state with its place in the data and its validation loss, after the log."""

    checkpoints: Checkpoints
    batches: data.Batches
    log: Log | Mute
    budget: Budget | None = None  # of a private run

    def save(self, state: State, step: int, valid_loss: float | None) -> None:
        """Make a checkpoint in the background; valid_loss: None if it has none yet."""
        extra = self._extra(step, valid_loss)
        self.checkpoints.save(step, state, extra, metric=valid_loss)

    def add_loss(self, step: int, valid_loss: float) -> None:
        """Add its validation loss to a checkpoint, in the background."""
        self.checkpoints.add_metric(step, valid_loss, self._extra(step, valid_loss))

    def keep(self, state: State, step: int, valid_loss: float | None) -> None:
        """See to it that the state is on the disk."""
        self.checkpoints.wait()
        if step not in self.checkpoints.steps():
            self.save(state, step, valid_loss)
            self.checkpoints.wait()

    @contextmanager
    def kept_if_it_fails(self, state: State, step: int, valid_loss: float | None) -> Iterator[None]:
        """Save what training has come to if the block fails, and let it fail."""
        try:
            yield
        except Exception:
            self.keep(state, step, valid_loss)
            raise

    def _extra(self, step: int, valid_loss: float | None) -> dict[str, Any]:
        sound = valid_loss is not None and isfinite(valid_loss)
        self.log.settle()
        extra = {"data": self.batches.state(), "valid_loss": valid_loss if sound else None}
        return extra if self.budget is None else extra | {"privacy": self.budget.record(step)}
