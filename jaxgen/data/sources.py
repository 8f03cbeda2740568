"""Which files a glob names: one of records or text, or two of parallel lines."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxgen import files
from jaxgen.data.settings import DataSettings
from jaxgen.data.streams import Bad, Tally, is_packed, lines
from jaxgen.errors import ConfigError, DataError

SIDE = "{side}"  # stands for the name of each side in a glob of parallel files
RECORDS = (".jsonl", ".ndjson", ".json", ".parquet")  # any other ending is read as text
# How files begin that are no text, whatever they are called.
SIGNATURES = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive, as .docx and .epub are",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"\x1f\x8b": "gzip, without the ending .gz",
    b"PAR1": "Parquet, without the ending .parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
SNIFFED = 4096  # bytes in which a file that is no text shows a NUL
Source = tuple[Path, ...]


class Sources(NamedTuple):
    """What the globs of a corpus match; withheld: what would be training text and is not."""

    train: list[Source]
    valid: list[Source]
    test: list[Source]
    withheld: list[Source]

    @property
    def paths(self) -> list[Path]:
        """All files, each once."""
        every_path = [path for split in self[:3] for source in split for path in source]
        return list(dict.fromkeys(every_path))


def split_sources(settings: DataSettings) -> Sources:
    """Return the files of each split; no file of one is in another, by whatever name or link.

    Training text that is validation or test text as well is withheld from training. Raises what
    `sources` raises, DataError if nothing is left to train on, and ConfigError for a file that is
    for validation and for the test.
    """
    every, valid, test = (
        sources(globs, settings.sides)
        for globs in (settings.files, settings.valid_files, settings.test_files)
    )
    for source in _shared(test, valid):
        raise ConfigError(
            f"{source[0]} is matched by data.valid_files and data.test_files; it can be for one of "
            f"them only"
        )
    withheld = _shared(every, [*valid, *test])
    train = [source for source in every if source not in withheld]
    if withheld and not train:
        raise DataError(
            f"all that data.files match ({withheld[0][0]}...) is validation or test text as well; "
            f"give other files to train on"
        )
    return Sources(train, valid, test, withheld)


def _shared(some: Sequence[Source], others: Sequence[Source]) -> list[Source]:
    identities = {_identity(path) for source in others for path in source}
    return [source for source in some if any(_identity(path) in identities for path in source)]


def _identity(path: Path) -> tuple[int, int] | str:
    """Return what two names of one file have in common, be they links of either kind."""
    try:
        there = path.stat()
    except OSError:  # said when it is read
        return os.path.realpath(path)
    return there.st_dev, there.st_ino


def sources(globs: Sequence[str], sides: Sequence[str]) -> list[Source]:
    """Return the files that the globs match, each once, in order of glob and name.

    A name that is there as it is written is no glob, whatever characters it has; a folder stands
    for the text in it (`text_below`). A glob with {side} gives (source, target) files, paired in
    order of name. Raises DataError for a glob without a match, or sides that differ in number.
    """
    by_key: dict[tuple, Source] = {}
    for pattern in globs:
        for source in _matches(pattern, sides):
            by_key.setdefault(tuple(map(_identity, source)), source)
    return list(by_key.values())


def text_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder and those below it, and which of them are empty or no text.

    In order of name; hidden files and folders count for nothing.
    """
    texts, others = [], []
    for path in files.below(folder):
        (texts if _looks_like_text(path) else others).append(path)
    return texts, others


def _looks_like_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED)
    except OSError:  # said when it is read
        return True
    if is_packed(path) or kind_of(path) in RECORDS:
        return bool(head)
    return bool(head) and b"\0" not in head and signature(head) is None


def signature(head: bytes) -> str | None:
    """Return what a file that begins like this is, if it is known to be no text."""
    return next((what for start, what in SIGNATURES.items() if head.startswith(start)), None)


def no_text(path: Path, raw: bytes) -> Bad | None:
    """Return why the bytes of a file can't be text, if they can't whatever the encoding."""
    what, fix = signature(raw), "convert it, or name it for what it is"
    if what is not None:
        fix = "save it as UTF-8" if what == "UTF-16" else fix
        return Bad("no text", f"{path} is {what}, not UTF-8 text", fix)
    try:
        if b"\0" in raw[:SNIFFED]:
            raw.decode()  # a NUL in what is text otherwise has a place that can be told
    except UnicodeDecodeError:
        return Bad("no text", f"{path} is no text", "give files of text")
    return None


def kind_of(path: Path) -> str:
    """Return the suffix that tells how to read a file, in small letters and without .gz."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()


def absolute(pattern: str, sides: Sequence[str]) -> str:
    """Return a glob that means the same in every working directory."""
    if files.in_bucket(path := files.to_path(pattern)):
        return str(path)
    path = path.expanduser()
    if any(os.path.lexists(name) for name in _names(str(path), sides)):
        return str(path.absolute())
    return str(path if path.is_absolute() else Path(glob.escape(os.getcwd())) / path)


def _names(pattern: str, sides: Sequence[str]) -> list[str]:
    return [pattern.replace(SIDE, side) for side in sides] if SIDE in pattern else [pattern]


def parallel(source: Source, tally: Tally) -> Iterator[tuple[bytes, ...]]:
    """Yield the lines of two files side by side; Bad, with both counts, if they differ in number.

    They are counted first, so that nothing is made of files that don't belong together.
    """
    counts = [sum(1 for _ in lines(path, Tally())) for path in source]
    if len(set(counts)) > 1:
        lengths = " and ".join(
            f"{path} has {n} lines" for path, n in zip(source, counts, strict=True)
        )
        raise Bad("unequal sides", f"{lengths}; parallel files need as many")
    yield from zip(*(lines(path, tally) for path in source), strict=True)


def _matches(pattern: str, sides: Sequence[str]) -> list[Source]:
    if SIDE not in pattern:
        return [(path,) for path in _glob(pattern, pattern)]
    if not sides:
        raise ConfigError(
            f"data.files {pattern!r} holds {SIDE} but data.sides is empty; write the two names"
        )
    both = [
        _glob(name, pattern.replace(SIDE, glob.escape(side)))
        for name, side in zip(_names(pattern, sides), sides, strict=True)
    ]
    if len(both[0]) != len(both[1]):
        raise DataError(
            f"data.files {pattern!r} matches {len(both[0])} files for {sides[0]} and "
            f"{len(both[1])} for {sides[1]}; correct the glob"
        )
    return list(zip(*both, strict=True))


def _glob(literal: str, pattern: str) -> list[Path]:
    there = files.matches(literal, pattern)
    matches = [path for path in there if not path.is_dir()]
    if not matches:
        matches = [path for folder in there for path in text_below(folder)[0]]
    if not matches:
        kind = "only folders without text match" if there else "no file matches"
        raise DataError(
            f"{kind} data.files {literal!r} (in {Path.cwd()}); correct the glob, or if the text "
            f"has moved say where it is, as in data.files=[other/*.txt]"
        )
    return matches
