"""The steps in a folder of checkpoints: which there are, which are best, which go."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.store import manifest
from jaxgen.store.manifest import DamageError, Manifest


def path(folder: Path, step: int) -> Path:
    """Return where a step is, or would be."""
    return folder / f"{step:08d}"


def steps(folder: Path) -> list[int]:
    """Return the steps on disk, sound or not, in order; BusyError if the folder is none."""
    with files.refusals(folder):
        try:
            names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    return sorted(step for step in numbers if path(folder, step).name in names)


def record(folder: Path, step: int) -> Manifest:
    """Return a step's manifest; DamageError, or CheckpointError if it is too new."""
    found = manifest.read(path(folder, step))
    if found.step != step:
        own = path(folder, step) / manifest.NAME
        raise DamageError(f"{own} is of step {found.step}: it, or its folder, has been renamed")
    return found


def ranked(folder: Path, among: Collection[int]) -> list[int]:
    """Return the steps that have a metric, the lowest first; of equals the newest first."""
    pairs = sorted(_metrics(folder, among), key=lambda pair: (pair[0], -pair[1]))
    return [step for _, step in pairs]


def metrics(folder: Path) -> list[float]:
    """Return the metrics of the steps on disk that have one."""
    return [metric for metric, _ in _metrics(folder, steps(folder))]


def add_metric(folder: Path, step: int, metric: float, extra: dict[str, Any]) -> None:
    """Give a step the metric, and the extra, that it lacks; CheckpointError if it is not sound."""
    try:
        there = record(folder, step)
    except DamageError as error:
        raise CheckpointError(f"{error}; its validation loss can't be added") from error
    if there.metric is None:
        manifest.write(path(folder, step), replace(there, metric=metric, extra=extra))


def keep_only(folder: Path, keep: Collection[int], failpoint: Callable[[str], object]) -> None:
    """Delete all steps but these."""
    for step in steps(folder):
        if step not in keep:
            remove(folder, step, failpoint)
    failpoint("retired")


def remove(folder: Path, step: int, failpoint: Callable[[str], object]) -> None:
    """Delete a step; BusyError where the system refuses."""
    # Renamed first: a half-deleted step must not look like a damaged one.
    away = folder / f"{files.TEMPORARY}{step:08d}-{uuid.uuid4().hex[:12]}"
    with files.refusals(folder):
        path(folder, step).rename(away)
        files.sync_folder(folder)
        failpoint("renamed away")
        shutil.rmtree(away)


def clean(folder: Path) -> list[str]:
    """Delete what is unfinished or half deleted, and return its names."""
    with files.refusals(folder):
        left = sorted(folder.glob(f"{files.TEMPORARY}*"))
        for entry in left:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return [entry.name for entry in left]


def _metrics(folder: Path, among: Collection[int]) -> Iterator[tuple[float, int]]:
    for step in among:
        with suppress(DamageError, CheckpointError):
            metric = record(folder, step).metric
            if metric is not None:
                yield metric, step
