"""Digests of files, remembered: what has not been touched since is not read again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jaxgen import files
from jaxgen.errors import BusyError

NAME = "digests.json"
# A file written so shortly ago may be written again without its times showing it: those of some
# file systems are in whole seconds.
FRESH = 2.0

Stamp = tuple[int, int, int, int]


class DigestCache:
    """Digests by path, each with the stamp of the file that it was taken of.

    A stamp is inode, size and the times of the last change of content and of anything else, which
    no program can set back. Whoever adds digests calls `save`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._known = _read(self.path)
        self._added: dict[str, tuple[Stamp, str]] = {}

    def find(self, path: Path) -> str | None:
        """Return the digest of a file if it is known and the file has not been touched since."""
        stamp, digest = self._known.get(str(path.absolute()), (None, None))
        return digest if stamp is not None and stamp == _stamp(path) else None

    def of(self, path: Path, take: Callable[[Path], str] | None = None) -> str:
        """Return the known digest of a file, else `take` of it, by default its sha256.

        Raises OSError if it can't be read.
        """
        if (known := self.find(path)) is not None:
            return known
        began, stamp = time.time(), _stamp(path)
        digest = (take or files.digest)(path)
        if began - max(stamp[2:]) / 1e9 > FRESH:  # one that changes meanwhile has another stamp
            self._added[str(path.absolute())] = stamp, digest
        return digest

    def save(self) -> None:
        """Write what was added beside what other processes have; files that are gone are dropped.

        A folder that can't be written costs the next start the time, and nothing else.
        """
        if not self._added:
            return
        merged = _read(self.path) | self._added
        there = {name: row for name, row in merged.items() if _may_exist(name)}
        with suppress(BusyError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, there)
        self._known, self._added = merged, {}


def _may_exist(name: str) -> bool:
    path = files.to_path(name)
    return files.in_bucket(path) or path.exists()


def _stamp(path: Path) -> Stamp:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _read(path: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        held = json.loads(path.read_bytes())
        return {
            name: ((int(a), int(b), int(c), int(d)), str(digest))
            for name, ((a, b, c, d), digest) in held.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
