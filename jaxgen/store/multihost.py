"""Saving and loading a step by all processes of a run.

A save synchronises four times: after process 0 has made the temporary folder; after each process
has written its shards; when process 0 gathers the list of files; after process 0 has checked them,
written the manifest and renamed the folder, which a bucket needs not. A failure of one process is
raised in all and leaves no step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxgen.errors import BusyError, CheckpointError
from jaxgen.mesh.group import Group
from jaxgen.store import directory, disk_space, manifest, shards
from jaxgen.store.manifest import DamageError, Manifest

T = TypeVar("T")


def write_step(
    group: Group,
    target: Path,
    draft: Manifest,
    mine: dict[str, np.ndarray],
    *,
    replaced: bool,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Write this process's shards of a step, and wait until the step is complete on disk.

    replaced: replace a damaged step of this number. A sound one is compared instead. before: called
    by process 0 before it writes anything, and again before the manifest.
    Raises CheckpointError or BusyError, in all processes, if any of them fails.
    """
    sums = shards.digests(mine)
    there = group.sync("save: there", decide=lambda _: str(int(directory.is_there(target))))
    if there == "1" and not replaced:
        group.all_ok("save: compare", lambda: _check_equal(target, sums))
        return
    size = sum(array.nbytes for array in mine.values())
    with ExitStack() as unfinished:
        folders: list[Path] = []

        def begin() -> None:
            before()
            folders.append(unfinished.enter_context(directory.new_step(target)))

        group.on_primary("save: begin", begin)
        name = group.sync("save: folder", decide=lambda _: folders[0].name)
        own = Path(shards.FOLDER) / f"{group.index:05d}.safetensors"
        folder = target.parent / name

        def write_own() -> dict[str, Any]:
            try:
                return {own.as_posix(): shards.write_shards(folder / own, mine, sums)}
            except OSError as error:
                raise disk_space.explain(target.parent, draft.step, size, error) from error

        row = group.all_ok("save: write", write_own)
        rows: dict[str, Any] = {}

        def collect(values: list[str]) -> str:
            for value in values:
                rows.update(json.loads(value))
            return ""

        group.sync("save: files", json.dumps(row), collect)

        def commit() -> None:
            _check_visible(folder, rows, group)
            _check_complete(folder, draft)
            before()
            manifest.write_manifest(folder, replace(draft, files=rows))
            if replaced and folder != target:
                directory.remove_step(target.parent, draft.step, lambda stage: None)
            try:
                unfinished.close()
            except (OSError, BusyError) as error:
                raise disk_space.explain(target.parent, draft.step, size, error) from error

        group.on_primary("save: commit", commit)


def _check_visible(folder: Path, rows: dict[str, Any], group: Group) -> None:
    """Raise BusyError for a file written by another process and not visible to this one."""
    for index, (name, row) in enumerate(sorted(rows.items())):
        path = folder / name
        if not path.exists() or path.stat().st_size != row["size"]:
            raise BusyError(
                f"{path}, written by {group.names[index]}, is not seen by {group.names[0]}; give "
                f"an --out on a file system that all processes share"
            )


def _check_complete(folder: Path, draft: Manifest) -> None:
    """Raise CheckpointError if the shards on disk do not cover all arrays."""
    try:
        lost = shards.ShardReader(folder, draft.leaves, check=False).missing()
    except DamageError as error:
        raise CheckpointError(f"{folder} can't be opened after writing it: {error}") from error
    if lost:
        raise CheckpointError(f"{folder}: {lost[0]} was not written")


def _check_equal(target: Path, sums: dict[str, str]) -> None:
    record = manifest.read_manifest(target)
    there: dict[str, str | None] = {}
    if record.format > 1:
        there = shards.ShardReader(target, record.leaves, check=False).sums()
    if any(there.get(name) != value for name, value in sums.items()):
        raise CheckpointError(f"{target} exists already with other arrays; move it away")


def load_sound(group: Group, look: Callable[[], T]) -> T:
    """Return `look()`; a DamageError of any process is raised in all."""
    problem: list[str] = []

    def attempt() -> T | None:
        try:
            return look()
        except DamageError as error:
            if group.store is None:
                raise
            problem.append(str(error))
            return None

    loaded = group.all_ok("restore", attempt)
    problem_anywhere = group.sync(
        "restore: sound", "".join(problem), lambda values: next((v for v in values if v), "")
    )
    if problem_anywhere:
        raise DamageError(problem_anywhere)
    return loaded  # pyright: ignore[reportReturnType]
