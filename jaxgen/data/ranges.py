"""An array in a file of a bucket, of which the blocks that are asked for are fetched, once."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files, host
from jaxgen.buckets import BucketPath
from jaxgen.errors import BusyError

BLOCK = 1 << 20  # bytes
RUN = 16  # blocks that one request fetches at most
KEPT = 7 * 86400.0  # seconds that blocks stay on this machine after their last use


class RangedArray:
    """A vector whose numbers are read by ranges, through files of this machine.

    path: of the file; kind: dtype of the numbers; offset: bytes before them; count: of numbers.
    Indexing is numpy's, by a slice or an array of places; np.asarray fetches all. Processes of a
    machine share the blocks: one file has them at their places, another a byte for each that is
    there, written after it. None outlives a start of the machine, which may have lost a part.
    """

    def __init__(self, path: BucketPath, kind: str, offset: int, count: int) -> None:
        entry = path.stat()
        version = f"{host.machine()} {path} {entry.st_ino} {entry.st_size} {entry.st_mtime_ns}"
        home = _folder() / hashlib.sha256(version.encode()).hexdigest()[:32]
        self.path, self.dtype, self._size = path, np.dtype(kind), entry.st_size
        with files.refusals(home):
            blocks = -(-entry.st_size // BLOCK)
            self._content = _map(home.with_suffix(".blocks"), entry.st_size)
            self._fetched = _map(home.with_suffix(".there"), blocks)
        end = offset + count * self.dtype.itemsize
        self._offset, self._array = offset, self._content[offset:end].view(self.dtype)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def shape(self) -> tuple[int, ...]:
        """(count,)."""
        return self._array.shape

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            begin, end, stride = key.indices(len(self))
            if stride > 0 and begin < end:
                self._fetch(np.arange(self._block(begin), self._block(end - 1) + 1))
            elif begin > end:
                self._fetch(np.arange(self._block(end + 1), self._block(begin) + 1))
        else:
            self._fetch(np.unique(self._block(places_of(key, len(self)))))
        # A copy: what numpy makes of a map must not be one that asks for nothing.
        return np.array(self._array[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def _block(self, place: Any) -> Any:
        return (self._offset + place * self.dtype.itemsize) // BLOCK

    def _fetch(self, blocks: np.ndarray) -> None:
        absent = blocks[self._fetched[blocks] == 0]
        breaks = np.flatnonzero(np.diff(absent) != 1) + 1
        for together in np.split(absent, breaks) if absent.size else ():
            for first in range(0, len(together), RUN):
                run = together[first : first + RUN]
                begin, end = int(run[0]) * BLOCK, min((int(run[-1]) + 1) * BLOCK, self._size)
                raw = self.path.read_range(begin, end)
                if len(raw) != end - begin:
                    raise BusyError(f"{self.path} has shrunk while it was read; start again")
                self._content[begin:end] = np.frombuffer(raw, np.uint8)
                self._fetched[run] = 1


def places_of(key: Any, count: int) -> np.ndarray:
    """Return the places, from 0 up, that an array of places or of truths names among `count`."""
    places = np.asarray(key)
    if places.dtype == bool:
        places = np.flatnonzero(places)
    return np.where(places < 0, places + count, places)


def _map(path: Path, size: int) -> np.ndarray:
    """Return a file of this machine as bytes, made of zeros, which take no room, if need be."""
    path.touch(0o600)
    os.truncate(path, size)  # to the size that it has, unless it is new
    return np.memmap(path, np.uint8, "r+")


def _folder() -> Path:
    path = Path(tempfile.gettempdir()) / f"jaxgen-ranges-{os.getuid()}"
    with files.refusals(path):
        path.mkdir(0o700, exist_ok=True)
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            raise BusyError(f"{path} is another user's; set TMPDIR to a folder of your own")
        for old in path.iterdir():
            if time.time() - old.stat().st_mtime > KEPT:
                old.unlink(missing_ok=True)
    return path
