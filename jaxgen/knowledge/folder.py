"""Arrays in a folder that is replaced as a whole: checksummed as checkpoints are, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.store import directory, manifest
from jaxgen.store.lock import NAME as LOCK
from jaxgen.store.lock import RunLock
from jaxgen.store.manifest import DamageError, Manifest

FORMAT = 1  # of what `extra` and the arrays mean; a newer one is refused
Kind = Literal["passages", "states"]
MAKES = {
    "passages": "`jaxgen index DOCS --out {}` makes one",
    "states": "`jaxgen eval RUN --knn {}` makes one",
}


class Stored(NamedTuple):
    """What a folder holds: named arrays, read as they are needed, and what is said of them."""

    path: Path
    arrays: dict[str, np.ndarray]
    extra: dict[str, Any]


def write(
    folder: Path, kind: Kind, arrays: Mapping[str, np.ndarray], extra: Mapping[str, Any]
) -> None:
    """Write arrays in the place of all that the folder holds, at once or not at all.

    Raises ConfigError for a folder with anything else in it, BusyError where another process
    writes there or the system refuses.
    """
    check(folder)
    with RunLock(folder):
        directory.remove_leftovers(folder)
        old = directory.list_steps(folder)
        step = max(old, default=0) + 1
        with files.new_folder(directory.step_path(folder, step)) as draft:
            for name, array in arrays.items():
                np.save(draft / f"{name}.npy", array)
            described = manifest.plain({**extra, "kind": kind, "format": FORMAT})
            _write_manifest(draft, step, described, manifest.inventory(draft))
        for one in old:
            directory.remove_step(folder, one, lambda name: None)


def check(folder: Path) -> None:
    """Raise ConfigError for a folder that `write` must not write into."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the index")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    names -= {LOCK, *(directory.step_path(folder, n).name for n in directory.list_steps(folder))}
    if others := sorted(name for name in names if not name.startswith(files.TEMPORARY)):
        raise ConfigError(f"{folder} holds {others[0]}, so it is no index; name a new folder")


def read(folder: Path, kind: Kind, *, verify: Literal["full", "off"] = "full") -> Stored:
    """Return what a folder holds, its arrays memory-mapped.

    verify: "full" compares every byte with its checksum, "off" sizes alone.

    Raises CheckpointError for what is no such folder, is damaged, or is of a newer jaxgen.
    """
    make = MAKES[kind].format(folder)
    steps = [] if folder.is_file() else directory.list_steps(folder)
    if not steps:
        if folder.exists():
            raise CheckpointError(f"{folder} is no index of {kind}; name the folder of one")
        raise CheckpointError(f"{folder} does not exist; {make}")
    path = directory.step_path(folder, steps[-1])
    try:
        record = directory.read_record(folder, steps[-1])
        if problems := manifest.damages(path, record, verify=verify):
            raise DamageError(problems[0])
        if record.extra.get("format", 0) > FORMAT:
            raise CheckpointError(
                f"{folder} is of format {record.extra['format']}, this jaxgen reads {FORMAT}; "
                f"upgrade jaxgen, or make it again"
            )
        if record.extra.get("kind") != kind:
            raise CheckpointError(f"{folder} is no index of {kind}; name the folder of one")
        with files.refusals(path):
            arrays = {
                name.removesuffix(".npy"): np.load(path / name, mmap_mode="r", allow_pickle=False)
                for name in record.files
            }
    except DamageError as error:
        raise CheckpointError(f"{error}; {make} again") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} can't be read: {error}; {make} again") from error
    return Stored(path, arrays, record.extra)


def add(folder: Path, changes: Mapping[str, Any]) -> None:
    """Add to what is said of a folder's arrays, which stay as they are."""
    with RunLock(folder):
        step = directory.list_steps(folder)[-1]
        record = directory.read_record(folder, step)
        changed = {**record.extra, **manifest.plain(changes)}
        _write_manifest(directory.step_path(folder, step), step, changed, record.files)


def _write_manifest(path: Path, step: int, extra: dict[str, Any], inventory: dict) -> None:
    manifest.write_manifest(
        path,
        Manifest(
            step=step,
            metric=None,
            fingerprints={},
            extra=extra,
            arrays={},
            files=inventory,
            versions=manifest.versions(),
            time=manifest.now(),
        ),
    )


def join(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return texts as (all their bytes, where each ends)."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), ends


def part(joined: np.ndarray, ends: np.ndarray, number: int) -> bytes:
    """Return text `number` of those that `join` joined."""
    begin = int(ends[number - 1]) if number else 0
    return joined[begin : int(ends[number])].tobytes()
