"""Digests of files, remembered: what has not been touched since is not read again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jaxgen import files
from jaxgen.errors import BusyError

NAME = "digests.json"
# A file written so shortly ago may be written again without its times showing it: those of some
# file systems are in whole seconds.
FRESH = 2.0

PRIME = 2**255 - 19
BASE = int.from_bytes(hashlib.sha256(b"jaxgen: things in a row").digest(), "big") % PRIME

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class RowDigest:
    """A digest of things in a row, which is had from those of its stretches as well.

    It is the polynomial in BASE, modulo PRIME, whose coefficients are the things' sha256: text and
    tokens that many machines have prepared in parts have the digest of one that did it all.
    """

    value: int = 0
    count: int = 0

    def add(self, raw: bytes | memoryview) -> RowDigest:
        """Return the digest with one more thing at the end."""
        number = int.from_bytes(hashlib.sha256(raw).digest(), "big")
        return RowDigest((self.value * BASE + number) % PRIME, self.count + 1)

    def join(self, later: RowDigest) -> RowDigest:
        """Return the digest of these things and then those of another."""
        shifted = self.value * pow(BASE, later.count, PRIME)
        return RowDigest((shifted + later.value) % PRIME, self.count + later.count)

    def hex(self) -> str:
        """Return 64 hexadecimal digits."""
        return hashlib.sha256(f"{self.count} {self.value}".encode()).hexdigest()

    def row(self) -> list[int | str]:
        """Return it as JSON holds it; `of_row` reads that."""
        return [self.count, f"{self.value:x}"]

    @classmethod
    def of_row(cls, row: list) -> RowDigest:
        """Return the digest that `row` wrote."""
        return cls(int(row[1], 16), int(row[0]))


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
        return digest if stamp is not None and stamp == stamp_of(path) else None

    def remember(self, path: Path, stamp: Stamp, digest: str) -> None:
        """Take over what another machine knows of a file, if it hasn't been touched since."""
        if stamp == stamp_of(path):
            self._added[str(path.absolute())] = stamp, digest
            self._known[str(path.absolute())] = stamp, digest

    def stamp(self, path: Path) -> Stamp | None:
        """Return the stamp of a file whose digest is known for as long as it has that stamp."""
        name = str(path.absolute())
        return (self._added.get(name) or self._known.get(name) or (None,))[0]

    def of(self, path: Path, take: Callable[[Path], str] | None = None) -> str:
        """Return the known digest of a file, else `take` of it, by default its sha256.

        Raises OSError if it can't be read.
        """
        if (known := self.find(path)) is not None:
            return known
        began, stamp = time.time(), stamp_of(path)
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


def stamp_of(path: Path) -> Stamp:
    """Return what changes when a file does."""
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
