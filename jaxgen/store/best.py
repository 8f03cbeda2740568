"""Which validation losses are among the best so far, by which checkpoints are kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

from jaxgen.mesh.group import Group
from jaxgen.store import directory


class Best:
    """The lowest metrics of a run: those on disk when it is first asked, and those added since.

    All processes of a group ask and add alike, and so agree without looking at the disk again.
    """

    def __init__(self, folder: Path, keep: int, group: Group) -> None:
        self.folder, self.keep, self.group = folder, keep, group
        self._lowest: list[float] | None = None

    def is_best(self, metric: float) -> bool:
        """Return whether a step of this metric would be kept for it."""
        lowest = self._read_lowest()
        room = len(lowest) < self.keep
        return math.isfinite(metric) and (room or metric < max(lowest, default=-math.inf))

    def add(self, metric: float | None) -> None:
        """Count the metric of a step that is being saved; None: it has none."""
        lowest = self._read_lowest()
        self._lowest = sorted(lowest if metric is None else [*lowest, metric])[: self.keep]

    def _read_lowest(self) -> list[float]:
        if self._lowest is None:
            there = self.group.sync(
                "metrics", decide=lambda _: json.dumps(directory.list_metrics(self.folder))
            )
            self._lowest = sorted(json.loads(there))[: self.keep]
        return self._lowest
