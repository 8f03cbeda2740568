"""Profiling a call: a writable folder, the trace, its report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from jax.profiler import ProfileData

from jaxgen import files
from jaxgen.profile import report, trace
from jaxgen.profile.report import Report


def prepare(folder: Path) -> None:
    """Make the folder of traces; BusyError if nothing can be written there.

    Raises ConfigError for one in a bucket.
    """
    files.refuse_bucket(folder, "leave out --profile, or give a run of this machine")
    with files.refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def of(call: Callable[[], object], folder: Path) -> tuple[Path, Report]:
    """Trace a blocking call; return (folder of the trace, its Report)."""
    before = trace.files(folder)
    with trace.record(folder):
        call()
    return read_profile(folder, before)


def read_profile(folder: Path, before: set[Path]) -> tuple[Path, Report]:
    """Return (folder of the trace that is not in `before`, its Report).

    Raises FileNotFoundError if there is none, BusyError if it holds no operation.
    """
    new = sorted(trace.files(folder) - before)
    if not new:
        raise FileNotFoundError(f"{folder} got no trace")
    ran = trace.read_operations(ProfileData.from_file(str(new[0])))
    return new[0].parent, report.summarize(ran, report.live_programs(ran))
