"""When validation no longer improves."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from pathlib import Path

from jaxgen.train.log import decode


class EarlyStopping:
    """Counts validations in a row without a lower loss than the best before.

    limit: so many end the training; None: none do. history: (step, loss) of validations made.
    """

    def __init__(self, limit: int | None, history: Iterable[tuple[int, float]] = ()) -> None:
        self.limit, self.best, self.best_step, self.stale = limit, inf, 0, 0
        for step, loss in history:
            self.add(step, loss)

    def add(self, step: int, loss: float) -> None:
        """Count a validation; a loss that is not finite is no better."""
        if loss < self.best:
            self.best, self.best_step, self.stale = loss, step, 0
        else:
            self.stale += 1

    def why(self) -> str:
        """Return why training ends here, as a line to show."""
        return (
            f"no validation loss below {self.best:.4f} of step {self.best_step} in {self.stale} "
            f"(train.early_stopping={self.limit}); `--step best` takes that step where it is kept"
        )

    @property
    def is_over(self) -> bool:
        """Whether training ends here."""
        return self.limit is not None and self.stale >= self.limit


def validation_losses(path: Path, last_step: int) -> list[tuple[int, float]]:
    """Return (step, loss) of the validations in a metrics.jsonl up to a step; NaN if not finite."""
    if not path.is_file():
        return []
    rows = [decode(line) for line in path.read_bytes().splitlines(keepends=True)]
    return [
        (row["step"], float("nan") if row.get("loss") is None else row["loss"])
        for row in rows
        if row and row.get("kind") == "valid" and row["step"] <= last_step
    ]
