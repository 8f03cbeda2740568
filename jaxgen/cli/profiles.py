"""What `--profile` does for a verb that makes something and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def trace_folder(folder: Path) -> Path:
    """Return the folder of a model's traces, made; BusyError if nothing can be written there."""
    from jaxgen.profile import take
    from jaxgen.run.folder import PROFILE

    take.prepare(folder / PROFILE)
    return folder / PROFILE


def show(again: Callable[[], object], folder: Path) -> None:
    """Call once more what has compiled all it needs, traced, and say what took its time."""
    from jaxgen.profile import report, take

    trace, spent = take.of(again, folder)
    print(f"profile: {spent.seconds:.4g} s; trace: {trace}", file=sys.stderr)
    for line in report.lines(spent, 1):
        print(line, file=sys.stderr)
