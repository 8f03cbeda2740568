"""The steps in a folder of checkpoints: listed, ranked by metric, deleted."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
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


def is_there(path: Path) -> bool:
    """Return whether a step is: its folder, which has its name once whole; in a bucket, by what
    is written last, its manifest.
    """
    return (path / manifest.NAME).exists() if files.in_bucket(path) else path.is_dir()


@contextmanager
def new_step(path: Path) -> Iterator[Path]:
    """Yield the folder in which to write a step, which is there when the block succeeds.

    Its manifest must be written last, for in a bucket it is written where it stays; and there it
    is left on failure, for `remove_leftovers`: the step may be one of another owner by then.
    """
    if files.in_bucket(path):
        files.remove(path)
        yield path
        return
    with files.new_folder(path) as draft:
        yield draft


def list_steps(folder: Path) -> list[int]:
    """Return the steps on disk, sound or damaged, in order; BusyError if `folder` is a file."""
    with files.refusals(folder):
        try:
            names = [entry.name for entry in folder.iterdir() if is_there(entry)]
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
    # Renamed first, or without a manifest: a half-deleted step must not look like a damaged one.
    if files.in_bucket(folder):
        (step_path(folder, step) / manifest.NAME).unlink(missing_ok=True)
        files.remove(step_path(folder, step))
        return
    trash = folder / f"{files.TEMPORARY}{step:08d}-{uuid.uuid4().hex[:12]}"
    with files.refusals(folder):
        step_path(folder, step).rename(trash)
        files.sync_folder(folder)
        failpoint("renamed away")
        files.remove(trash)


def remove_leftovers(folder: Path) -> list[str]:
    """Delete unfinished and half-deleted steps, and return their names."""
    with files.refusals(folder):
        left = sorted(folder.glob(f"{files.TEMPORARY}*"))
        if files.in_bucket(folder) and folder.exists():
            left = sorted(entry for entry in folder.iterdir() if not is_there(entry))
        for entry in left:
            files.remove(entry)
    return [entry.name for entry in left]


def _metrics_of(folder: Path, among: Collection[int]) -> Iterator[tuple[float, int]]:
    for step in among:
        with suppress(DamageError, CheckpointError):
            metric = read_record(folder, step).metric
            if metric is not None:
                yield metric, step
