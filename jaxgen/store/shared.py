"""A step written and read by all processes of a run: each does its part, process 0 makes it whole.

A save is four meetings: process 0 has made the unfinished folder; each process has written its
pieces; what they wrote is told to process 0; process 0 has seen all of it, written the manifest and
renamed the folder. A process that fails in between fails all, and leaves no step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxgen import files
from jaxgen.errors import BusyError, CheckpointError
from jaxgen.mesh.group import Group
from jaxgen.store import manifest, pieces, shelf, space
from jaxgen.store.manifest import DamageError, Manifest

T = TypeVar("T")


def write(
    group: Group, target: Path, draft: Manifest, mine: dict[str, np.ndarray], *, replaced: bool
) -> None:
    """Write this process's pieces of a step, and wait until the step is whole on disk.

    replaced: the step is there, damaged. Where it is there and sound, it is compared instead.
    Raises CheckpointError or BusyError, in all processes, if any of them fails.
    """
    sums = pieces.digests(mine)
    there = group.sync("save: there", decide=lambda _: str(int(target.exists())))
    if there == "1" and not replaced:
        group.all_ok("save: compare", lambda: _refuse_other(target, sums))
        return
    size = sum(array.nbytes for array in mine.values())
    with ExitStack() as unfinished:
        made: list[Path] = []
        group.on_primary(
            "save: begin",
            lambda: made.append(unfinished.enter_context(files.new_folder(target))),
        )
        name = group.sync("save: folder", decide=lambda _: made[0].name)
        own = Path(pieces.PIECES) / f"{group.index:05d}.safetensors"
        folder = target.parent / name

        def mine_too() -> dict[str, Any]:
            try:
                pieces.write(folder / own, mine, sums)
                file = folder / own
                return {own.as_posix(): {"size": file.stat().st_size, "sha256": files.digest(file)}}
            except OSError as error:
                raise space.told(target.parent, draft.step, size, error) from error

        row = group.all_ok("save: write", mine_too)
        rows: dict[str, Any] = {}

        def collect(values: list[str]) -> str:
            for value in values:
                rows.update(json.loads(value))
            return ""

        group.sync("save: files", json.dumps(row), collect)

        def commit() -> None:
            _see_all(folder, rows, group)
            _open_again(folder, draft)
            manifest.write(folder, replace(draft, files=rows))
            if replaced:
                shelf.remove(target.parent, draft.step, lambda stage: None)
            try:
                unfinished.close()
            except (OSError, BusyError) as error:
                raise space.told(target.parent, draft.step, size, error) from error

        group.on_primary("save: commit", commit)


def _see_all(folder: Path, rows: dict[str, Any], group: Group) -> None:
    """Raise BusyError for a file that another process has written and this one does not see."""
    for index, (name, row) in enumerate(sorted(rows.items())):
        path = folder / name
        if not path.exists() or path.stat().st_size != row["size"]:
            raise BusyError(
                f"{path}, written by {group.names[index]}, is not seen by {group.names[0]}; give "
                f"an --out on a file system that all processes share"
            )


def _open_again(folder: Path, draft: Manifest) -> None:
    """Raise CheckpointError if what all processes have written is not all of the arrays."""
    try:
        lost = pieces.Pieces(folder, draft.leaves, check=False).missing()
    except DamageError as error:
        raise CheckpointError(f"{folder} can't be opened after writing it: {error}") from error
    if lost:
        raise CheckpointError(f"{folder}: {lost[0]} was not written")


def _refuse_other(target: Path, sums: dict[str, str]) -> None:
    record = manifest.read(target)
    there: dict[str, str | None] = {}
    if record.format > 1:
        there = pieces.Pieces(target, record.leaves, check=False).sums()
    if any(there.get(name) != value for name, value in sums.items()):
        raise CheckpointError(f"{target} exists already with other arrays; move it away")


def sound(group: Group, look: Callable[[], T]) -> T:
    """Return what `look` finds in a step; DamageError in all processes if it is one in any."""
    problem: list[str] = []

    def tried() -> T | None:
        try:
            return look()
        except DamageError as error:
            if group.store is None:
                raise
            problem.append(str(error))
            return None

    found = group.all_ok("restore", tried)
    told = group.sync(
        "restore: sound", "".join(problem), lambda values: next((v for v in values if v), "")
    )
    if told:
        raise DamageError(told)
    return found  # pyright: ignore[reportReturnType]
