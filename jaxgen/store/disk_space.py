"""Disk space: checked before a save, and explained when it runs out during one."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import BusyError, CheckpointError
from jaxgen.store import directory, pytree_io
from jaxgen.store.manifest import DamageError

HEADROOM = 1.2  # free space required, relative to the last checkpoint
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check(folder: Path, step: int, nbytes: int) -> None:
    """Raise CheckpointError if the disk lacks the room of the last checkpoint, or of `nbytes`."""
    for other in reversed(directory.list_steps(folder)):
        with suppress(DamageError, CheckpointError):
            nbytes = directory.read_record(folder, other).nbytes
            break
    with files.refusals(folder):
        free = files.free_space(folder)
    if free < HEADROOM * nbytes:
        raise _disk_full_error(folder, step, nbytes, free)


def check_run(folder: Path, abstract_tree: Any, number: int) -> None:
    """Raise CheckpointError if the disk lacks room for so many checkpoints of a tree.

    Those that are there already are counted among them.
    """
    number -= len(directory.list_steps(folder))
    nbytes = sum(
        pytree_io.spec_of(leaf).nbytes for leaf in pytree_io.named_leaves(abstract_tree).values()
    )
    if number < 1:
        return
    with files.refusals(folder):
        free = files.free_space(folder)
    need = HEADROOM * nbytes * number
    if free < need:
        raise CheckpointError(
            f"{folder}: {number} checkpoints of {files.human(nbytes)} need {files.human(need)}, "
            f"{files.human(float(free))} are free; free some, or set checkpoint.keep_last and "
            f"checkpoint.keep_best lower"
        )


def explain(folder: Path, step: int, nbytes: int, error: Exception) -> Exception:
    """Return the error to show a user for one that stopped a save."""
    root: BaseException | None = error
    while root is not None:
        # TensorStore's errors hold the system's only as text.
        if getattr(root, "errno", None) in _FULL or any(
            os.strerror(code) in str(root) for code in _FULL
        ):
            return _disk_full_error(folder, step, nbytes, files.free_space(folder))
        root = root.__cause__
    if isinstance(error, BusyError | CheckpointError):
        return error
    return CheckpointError(f"{folder}: step {step} could not be written: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """Return the message of another library's error, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _disk_full_error(folder: Path, step: int, nbytes: int, free: int | float) -> CheckpointError:
    steps = ", ".join(map(str, directory.list_steps(folder))) or "none"
    return CheckpointError(
        f"{folder}: the disk is full, step {step} is not saved: it needs "
        f"{files.human(HEADROOM * nbytes)}, {files.human(float(free))} are free; free some and "
        f"resume (steps on disk: {steps})"
    )
