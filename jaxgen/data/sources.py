"""Which files a glob names: one of records or text, or two of parallel lines."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxgen.data.streams import Bad, Tally, lines
from jaxgen.errors import ConfigError, DataError

SIDE = "{side}"  # stands for the name of each side in a glob of parallel files
KINDS = (".txt", ".jsonl", ".parquet")
Source = tuple[Path, ...]


def sources(globs: Sequence[str], sides: Sequence[str]) -> list[Source]:
    """Return the files that the globs match, each once, in order of glob and name.

    A glob with {side} gives (source, target) files, paired in order of name. Raises DataError for
    a glob without a match, sides that differ in number, or a file of an unknown type.
    """
    found: dict[tuple[str, ...], Source] = {}
    for pattern in globs:
        for source in _matches(pattern, sides):
            found.setdefault(tuple(os.path.realpath(path) for path in source), source)
    for source in found.values():
        if len(source) == 1 and kind_of(source[0]) not in KINDS:
            raise DataError(
                f"{source[0]} is of an unknown type; data.files takes {', '.join(KINDS)}, also .gz"
            )
    return list(found.values())


def kind_of(path: Path) -> str:
    """Return the suffix that tells how to read a file, without .gz."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def parallel(source: Source, tally: Tally) -> Iterator[tuple[bytes, ...]]:
    """Yield the lines of two files side by side; Bad, with both counts, if they differ in number.

    They are counted first, so that nothing is made of files that don't belong together.
    """
    counts = [sum(1 for _ in lines(path, Tally())) for path in source]
    if len(set(counts)) > 1:
        told = " and ".join(f"{path} has {n} lines" for path, n in zip(source, counts, strict=True))
        raise Bad("unequal sides", f"{told}; parallel files need as many")
    yield from zip(*(lines(path, tally) for path in source), strict=True)


def _matches(pattern: str, sides: Sequence[str]) -> list[Source]:
    if SIDE not in pattern:
        return [(path,) for path in _glob(pattern)]
    if not sides:
        raise ConfigError(
            f"data.files {pattern!r} holds {SIDE} but data.sides is empty; write the two names"
        )
    both = [_glob(pattern.replace(SIDE, side)) for side in sides]
    if len(both[0]) != len(both[1]):
        raise DataError(
            f"data.files {pattern!r} matches {len(both[0])} files for {sides[0]} and "
            f"{len(both[1])} for {sides[1]}; correct the glob"
        )
    return list(zip(*both, strict=True))


def _glob(pattern: str) -> list[Path]:
    names = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    matches = [Path(name) for name in names if not Path(name).is_dir()]
    if not matches:
        kind = "only folders match" if names else "no file matches"
        raise DataError(f"{kind} data.files {pattern!r} (in {Path.cwd()}); correct the glob")
    return matches
