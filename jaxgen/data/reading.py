"""The documents of a corpus, in one order, each checked; what is malformed is named by place."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.data.settings import DataSettings
from jaxgen.data.streams import MAX_RECORD, Bad, Tally, blocks, lines
from jaxgen.errors import ConfigError, DataError, nearest


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the file or module it is from."""

    text: str
    source: str


def documents(settings: DataSettings, tally: Tally | None = None) -> Iterator[Document]:
    """Yield the corpus: .txt one document a file, .jsonl one a line, .parquet one a row.

    A byte order mark is dropped, CRLF becomes LF; texts that are empty are left out and counted.
    Raises DataError for a malformed record unless settings.on_bad_record is "skip", ConfigError
    if the settings name no corpus or an extra is not installed.
    """
    tally = Tally() if tally is None else tally
    if settings.corpus:
        from jaxgen.data import corpora

        for document in corpora.CORPORA[settings.corpus]():
            tally.read += len(document.text.encode())
            yield document
        return
    for path in paths(settings):
        yield from _of_file(path, settings, tally)


def paths(settings: DataSettings) -> list[Path]:
    """Return the files that the globs match, each once, in order of glob and name.

    Raises DataError for a glob without a match, a folder's worth of nothing, or an unknown type.
    """
    if not settings.files:
        raise ConfigError(
            "data names no text; set data.files, or data.corpus to python-docs or python-docstrings"
        )
    found: dict[str, Path] = {}
    for pattern in settings.files:
        names = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        matches = [Path(name) for name in names if not Path(name).is_dir()]
        if not matches:
            kind = "only folders match" if names else "no file matches"
            raise DataError(f"{kind} data.files {pattern!r} (in {Path.cwd()}); correct the glob")
        for path in matches:
            found.setdefault(os.path.realpath(path), path)
    for path in found.values():
        if _kind(path) not in READERS:
            raise DataError(
                f"{path} is of an unknown type; data.files takes {', '.join(READERS)}, also .gz"
            )
    return list(found.values())


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _of_file(path: Path, settings: DataSettings, tally: Tally) -> Iterator[Document]:
    def bad(error: Bad) -> None:
        if settings.on_bad_record == "stop":
            raise DataError(f"{error}; mend it, or set data.on_bad_record: skip") from error
        tally.skipped[error.reason] += 1

    with files.refusals(path):
        if path.stat().st_size == 0:
            bad(Bad("empty file", f"{path} is empty"))
            return
        try:
            for text in READERS[_kind(path)](path, settings.field, tally, bad):
                if text:
                    yield Document(text, str(path))
                else:
                    tally.skipped["empty text"] += 1
        except Bad as error:  # what ends the file, not one record of it
            bad(error)


def _text_file(path: Path, key: str, tally: Tally, bad: Callable) -> Iterator[str]:
    raw = bytearray()
    for block in blocks(path, tally):
        raw += block
        if len(raw) > MAX_RECORD:
            raise Bad(
                "too long",
                f"{path} is a text of more than {files.human(MAX_RECORD)}; split it into files",
            )
    text = _decoded(bytes(raw.removeprefix(b"\xef\xbb\xbf")), str(path), len(raw))
    yield _sound(text.replace("\r\n", "\n"), str(path))


def _json_lines(path: Path, key: str, tally: Tally, bad: Callable) -> Iterator[str]:
    place = 0
    for number, line in enumerate(lines(path, tally), 1):
        where = f"{path}:{number}"
        whole = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            if whole.strip():
                yield _of_line(whole, key, where, place + len(line) - len(whole))
        except Bad as error:
            bad(error)
        place += len(line) + 1


def _of_line(line: bytes, key: str, where: str, place: int) -> str:
    try:
        record = json.loads(_decoded(line, where, len(line), place))
    except Bad:
        raise
    except (ValueError, RecursionError) as error:
        raise Bad("not JSON", f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise Bad("not an object", f"{where} is {_name(record)}, not an object with {key!r}")
    if key not in record:
        near = (
            nearest(key, record) or f"; it has {', '.join(map(repr, list(record)[:8])) or 'none'}"
        )
        raise Bad("no such field", f"{where} has no field {key!r}{near}")
    if not isinstance(record[key], str):
        raise Bad("not a string", f"{where}: {key!r} is {_name(record[key])}, not a string")
    return _sound(record[key], where)


def _parquet(path: Path, key: str, tally: Tally, bad: Callable) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the `pyarrow` package: pip install 'jaxgen[parquet]'"
        ) from error
    source: Any = path
    if path.suffix == ".gz":
        source = pyarrow.BufferReader(b"".join(blocks(path, tally)))
    else:
        tally.read += path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(source) as table:
            names = table.schema_arrow.names
            if key not in names:
                near = nearest(key, names) or f"; it has {', '.join(map(repr, names[:8]))}"
                raise Bad("no such field", f"{path} has no column {key!r}{near}")
            column = table.schema_arrow.field(key).type
            if not (pyarrow.types.is_string(column) or pyarrow.types.is_large_string(column)):
                raise Bad("not a string", f"{path}: column {key!r} holds {column}, not strings")
            number = 0
            for batch in table.iter_batches(columns=[key], batch_size=1024):
                for value in batch.column(0):
                    number += 1
                    try:
                        yield _of_cell(value, key, f"{path}: row {number}")
                    except Bad as error:
                        bad(error)
    except (pyarrow.ArrowException, OSError) as error:
        raise Bad("damaged", f"{path} is no whole Parquet file: {error}") from error


def _of_cell(value: Any, key: str, where: str) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise Bad(
            "not UTF-8", f"{where}: {key!r} is not UTF-8 at its byte {error.start}"
        ) from error
    if text is None:
        raise Bad("not a string", f"{where}: {key!r} is null, not a string")
    return _sound(text, where)


READERS: dict[str, Callable[[Path, str, Tally, Callable], Iterator[str]]] = {
    ".txt": _text_file,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


def _decoded(raw: bytes, where: str, whole: int, place: int = 0) -> str:
    """Return UTF-8 as text; the offset in an error counts from the beginning of the file."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = place + error.start + whole - len(raw)
        raise Bad(
            "not UTF-8",
            f"{where} is not UTF-8 at byte offset {offset} (0x{raw[error.start]:02x})",
        ) from error


def _sound(text: str, where: str) -> str:
    if (place := text.find("\0")) >= 0:
        raise Bad("NUL", f"{where} holds a NUL, at character {place} of its text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Bad(
            "lone surrogate",
            f"{where} holds the lone surrogate U+{ord(text[error.start]):04X}, at character "
            f"{error.start} of its text",
        ) from error
    return text


def _name(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
