"""The steps in a folder of checkpoints: listed, ranked by metric, deleted."""

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


def step_path(folder: Path, step: int) -> Path:
    """Return the path of a step, which need not exist."""
    return folder / f"{step:08d}"


def list_steps(folder: Path) -> list[int]:
    """Return the steps on disk, sound or damaged, in order; BusyError if `folder` is a file."""
    with files.refusals(folder):
        try:
            names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    return sorted(step for step in numbers if step_path(folder, step).name in names)


def read_record(folder: Path, step: int) -> Manifest:
    """Return a step's manifest; DamageError, or CheckpointError if it is too new."""
    record = manifest.read_manifest(step_path(folder, step))
    if record.step != step:
        own = step_path(folder, step) / manifest.NAME
        raise DamageError(f"{own} is of step {record.step}: it, or its folder, has been renamed")
    return record


def rank_by_metric(folder: Path, among: Collection[int]) -> list[int]:
    """Return the steps with a metric, lowest first; of equal metrics the newest first."""
    pairs = sorted(_metrics_of(folder, among), key=lambda pair: (pair[0], -pair[1]))
    return [step for _, step in pairs]


def list_metrics(folder: Path) -> list[float]:
    """Return the metrics of the steps on disk that have one."""
    return [metric for metric, _ in _metrics_of(folder, list_steps(folder))]


def add_metric(folder: Path, step: int, metric: float, extra: dict[str, Any]) -> None:
    """Add the metric and the extra to a step without one; CheckpointError if it is damaged."""
    try:
        record = read_record(folder, step)
    except DamageError as error:
        raise CheckpointError(f"{error}; its validation loss can't be added") from error
    if record.metric is None:
        manifest.write_manifest(
            step_path(folder, step), replace(record, metric=metric, extra=extra)
        )


def keep_only(folder: Path, keep: Collection[int], failpoint: Callable[[str], object]) -> None:
    """Delete all steps but these."""
    for step in list_steps(folder):
        if step not in keep:
            remove_step(folder, step, failpoint)
    failpoint("retired")


def remove_step(folder: Path, step: int, failpoint: Callable[[str], object]) -> None:
    """Delete a step; BusyError where the system refuses."""
    # Renamed first: a half-deleted step must not look like a damaged one.
    trash = folder / f"{files.TEMPORARY}{step:08d}-{uuid.uuid4().hex[:12]}"
    with files.refusals(folder):
        step_path(folder, step).rename(trash)
        files.sync_folder(folder)
        failpoint("renamed away")
        shutil.rmtree(trash)


def remove_leftovers(folder: Path) -> list[str]:
    """Delete unfinished and half-deleted steps, and return their names."""
    with files.refusals(folder):
        left = sorted(folder.glob(f"{files.TEMPORARY}*"))
        for entry in left:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return [entry.name for entry in left]


def _metrics_of(folder: Path, among: Collection[int]) -> Iterator[tuple[float, int]]:
    for step in among:
        with suppress(DamageError, CheckpointError):
            metric = read_record(folder, step).metric
            if metric is not None:
                yield metric, step
