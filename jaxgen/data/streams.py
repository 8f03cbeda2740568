"""Bytes of plain and gzip files, in blocks and in lines, with caps on what may come out."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxgen.files import human

BLOCK = 1 << 20
MAX_RECORD = 1 << 30  # bytes of a line, or of a text file
MAX_RATIO = 200  # of gzip: text compresses 3 to 20 times, a bomb 1000 times
SHOWN = 3  # malformed records that are named
FREE = 64 << 20  # bytes that may come out at any ratio


class Bad(Exception):  # noqa: N818  a record is bad, the program is not
    """A malformed record: a short reason, by which it is counted, a line that says where, a fix."""

    def __init__(self, reason: str, line: str, fix: str = "mend it") -> None:
        super().__init__(line)
        self.reason, self.fix = reason, fix


@dataclass
class Tally:
    """What reading has come to so far: bytes read on disk, and records skipped by reason.

    bad: how many of them were malformed; first_bad: what was wrong with the first SHOWN, and where.
    """

    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)

    def skip(self, error: Bad) -> None:
        """Count a malformed record that is left out."""
        self.skipped[error.reason] += 1
        self.bad += 1
        if self.bad <= SHOWN:
            self.first_bad.append(str(error))


def is_packed(path: Path) -> bool:
    """Return whether a file's name says that it is gzip."""
    return path.suffix.lower() == ".gz"


def blocks(path: Path, tally: Tally) -> Iterator[bytes]:
    """Yield the content of a file, or what a .gz file holds; Bad if it is damaged or a bomb."""
    if is_packed(path):
        yield from _inflated(path, tally)
        return
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            tally.read += len(block)
            yield block


def _inflated(path: Path, tally: Tally) -> Iterator[bytes]:
    came, went, machine = 0, 0, zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        while block := file.read(BLOCK // 8):
            tally.read += len(block)
            came += len(block)
            while block:
                if machine.eof:  # gzip files may be joined end to end, and padded with zeros
                    block = block.lstrip(b"\0")
                    if not block:
                        break
                    machine = zlib.decompressobj(wbits=31)
                try:
                    plain = machine.decompress(block, BLOCK)
                except zlib.error as error:
                    raise Bad("damaged", f"{path} is no sound gzip file: {error}") from error
                block = machine.unused_data if machine.eof else machine.unconsumed_tail
                went += len(plain)
                if went > max(FREE, MAX_RATIO * came):
                    raise Bad(
                        "gzip bomb",
                        f"{path} unpacks to more than {MAX_RATIO} times its size "
                        f"({human(went)} so far); unpack it yourself if that is right",
                    )
                yield plain
    if not machine.eof:
        raise Bad("damaged", f"{path} is a truncated gzip file")


def lines(path: Path, tally: Tally) -> Iterator[bytes]:
    """Yield lines without their "\\n"; Bad for one that is longer than MAX_RECORD."""
    pending: list[bytes] = []
    size, number = 0, 1
    for block in blocks(path, tally):
        first, *rest = block.split(b"\n")
        pending.append(first)
        size += len(first)
        if size > MAX_RECORD:
            raise Bad("too long", f"{path}:{number} is longer than {human(MAX_RECORD)}")
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            number += len(rest)
            pending, size = [rest[-1]], len(rest[-1])
    if size:
        yield b"".join(pending)
