"""A trace from beginning to end: a folder that can be written, what is traced, what it says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from jax.profiler import ProfileData

from jaxgen import files
from jaxgen.profile import report, trace
from jaxgen.profile.report import Report


def prepare(folder: Path) -> None:
    """Make the folder of traces; BusyError if nothing can be written there."""
    with files.refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def of(call: Callable[[], object], folder: Path) -> tuple[Path, Report]:
    """Trace a call that waits for its devices; return where the trace lies, and its Report."""
    before = trace.files(folder)
    with trace.record(folder):
        call()
    return read_profile(folder, before)


def read_profile(folder: Path, before: set[Path]) -> tuple[Path, Report]:
    """Return (folder of the trace that was not there before, its Report).

    Raises FileNotFoundError if there is none, BusyError if it holds no operation.
    """
    made = sorted(trace.files(folder) - before)
    if not made:
        raise FileNotFoundError(f"{folder} got no trace")
    ran = trace.read_operations(ProfileData.from_file(str(made[0])))
    return made[0].parent, report.summarize(ran, report.live(ran))
