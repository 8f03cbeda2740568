"""A step that takes far longer than the steps before it is said, and where it is."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

LEAST = 60.0  # seconds that no step is reported before
TIMES = 20.0  # the median step: what is longer is no ordinary variation
OTHERS = 600.0  # seconds for what has no median: compiling, validating, sampling
RECENT = 100  # steps that the median is of


@dataclass(frozen=True)
class Limits:
    """When something is taking too long, in seconds, or multiples of the median step."""

    least: float = LEAST
    times: float = TIMES
    others: float = OTHERS


@dataclass
class _Task:
    what: str
    step: int
    begun: float
    limit: float
    late: bool = False


class Watchdog:
    """Reports each task that exceeds its limit once, in `folder`/stall-STEP.txt with all stacks.

    A step may take as long as max(least, times * the median of the last steps); all else has a
    fixed limit. Nothing is ended: a step may be slow because the machine is, and SIGTERM ends a
    stuck one. say: called with a line for people, from another thread.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], object], limits: Limits | None = None
    ) -> None:
        self.folder, self.say, self.limits = folder, say, limits or Limits()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._task: _Task | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._patrol, name="jaxgen-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    @contextmanager
    def watching(self, what: str, step: int) -> Iterator[None]:
        """Watch over the block, which does `what` after so many steps; "training" is a step."""
        limit = self.limits.others
        if what == "training" and self._recent:
            limit = max(self.limits.least, self.limits.times * median(self._recent))
        task = self._task = _Task(what, step, time.monotonic(), limit)
        try:
            yield
        finally:
            self._task = None
            spent = time.monotonic() - task.begun
            if what == "training":
                self._recent.append(spent)
            if task.late:
                self.say(f"{what} after step {step} went on after {spent:.1f} s")

    def _patrol(self) -> None:
        # Looking now and then, not a timer for each task, costs a step nothing.
        while not self._closing.wait(min(self.limits.least, self.limits.others) / 8):
            self.look()

    def look(self) -> None:
        """Report what is going on if it has just become too long."""
        task = self._task
        if task is not None and not task.late and time.monotonic() - task.begun > task.limit:
            task.late = True
            self._report(task)

    def _report(self, task: _Task) -> None:
        usual = f" (a step usually takes {median(self._recent):.2g} s)" if self._recent else ""
        line = (
            f"warning: {task.what} after step {task.step} has been going on for "
            f"{time.monotonic() - task.begun:.1f} s{usual}"
        )
        path = self.folder / f"stall-{task.step}.txt"
        where = "its stacks can't be written"
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%FT%T%z')} {line}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.write("\n")
            where = f"{path} shows where"
        self.say(f"{line}; {where}")
