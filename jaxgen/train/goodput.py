"""Where the time of a run goes: what its steps take, and what starts, saves and crashes cost.

Goodput is the share that went into steps that were kept. time.jsonl grows by a line at each
beginning, save, validation and end; nothing of it is ever removed, so that what a killed run had
done in vain can be counted. {"clock": seconds since 1970, "step", phase: seconds since the line
before, ...}; a beginning has "seen", the last sign of life of the process before it, an end "end".
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxgen.train.display import duration
from jaxgen.train.log import METRICS, TIMES, decode

STEPS, LOST, STOPPED = "training", "lost", "stopped"
Record = dict[str, Any]


class Stopwatch:
    """Attributes each moment to the innermost phase that it belongs to; begins with "starting"."""

    def __init__(self) -> None:
        self.began, self.since = time.time(), time.monotonic()
        self.phases = ["starting"]
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.write: Callable[[Record], None] = lambda record: None

    def begin(self, write: Callable[[Record], None], step: int, seen: float | None) -> None:
        """Write the first line with `write`, which takes the later ones as well.

        seen: when the process before this one last wrote, in seconds since 1970.
        """
        self.write = write
        self.write({"clock": self.began, "step": step, "seen": seen})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the block to `name`, but for the phases within it."""
        self._turn()
        self.phases.append(name)
        try:
            yield
        finally:
            self._turn()
            self.phases.pop()

    def begin_steps(self) -> None:
        """What is left between the phases is no starting any more."""
        self._turn()
        self.phases[0] = "other"

    def record(self, step: int, **more: Any) -> None:
        """Write down what has been spent since the last record, up to this step."""
        self._turn()
        spent = {name: round(seconds, 4) for name, seconds in self.spent.items() if seconds}
        self.write({"clock": time.time(), "step": step, **more, **spent})
        self.spent.clear()

    def _turn(self) -> None:
        now = time.monotonic()
        self.spent[self.phases[-1]] += now - self.since
        self.since = now


def last_sign(folder: Path) -> float | None:
    """Return when a run last wrote of its steps, in seconds since 1970; None if it never has."""
    files = [folder / name for name in (TIMES, METRICS)]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=None)


def read_times(folder: Path) -> list[Record]:
    """Return the records of a run's time.jsonl, [] where it has none."""
    path = folder / TIMES
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [record for record in map(decode, lines) if record and "clock" in record]


def spent(records: Sequence[Record]) -> dict[str, float]:
    """Return phase -> seconds of a run's whole life, pauses after an orderly end left out.

    "lost": training after the last checkpoint that was gone on from; "stopped": from the death of
    a process to the beginning of the next.
    """
    total: defaultdict[str, float] = defaultdict(float)
    sessions: list[list[Record]] = []
    for record in records:
        if "seen" in record or not sessions:
            sessions.append([])
        sessions[-1].append(record)
    for session, following in zip_longest(sessions, sessions[1:]):
        kept = session[-1]["step"] if following is None else following[0]["step"]
        for record in session:
            for name, seconds in _phases(record).items():
                total[LOST if name == STEPS and record["step"] > kept else name] += seconds
        if following is not None and "end" not in session[-1]:
            last, begin = session[-1]["clock"], following[0]["clock"]
            seen = min(max(following[0].get("seen") or last, last), begin)
            total[LOST] += seen - last
            total[STOPPED] += begin - seen
    return {name: seconds for name, seconds in total.items() if seconds > 0}


def _phases(record: Record) -> dict[str, float]:
    about = ("clock", "step", "seen", "end")
    return {name: value for name, value in record.items() if name not in about}


def goodput(seconds: Mapping[str, float]) -> float:
    """Return the share of all time that went into steps that were kept, from 0 to 1."""
    return seconds.get(STEPS, 0.0) / max(sum(seconds.values()), 1e-9)


def describe(seconds: Mapping[str, float]) -> str:
    """Return the goodput and what the rest of the time went into, in one line."""
    total = sum(seconds.values())
    rest = sorted(((s, n) for n, s in seconds.items() if n != STEPS), reverse=True)
    shares = [f"{name} {100 * s / total:.1f} %" for s, name in rest if s >= 0.001 * total]
    more = f" ({', '.join(shares)})" if shares else ""
    return f"goodput {100 * goodput(seconds):.1f} % of {duration(total)}{more}"
