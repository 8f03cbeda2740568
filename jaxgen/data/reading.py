"""The documents of a corpus, in one order, each checked; what is malformed is named by place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxgen import files as ground
from jaxgen.data.corpora import CORPORA
from jaxgen.data.document import Document
from jaxgen.data.settings import DataSettings, Form
from jaxgen.data.sources import Source, kind_of, parallel, sources
from jaxgen.data.streams import MAX_RECORD, Bad, Tally, blocks, lines
from jaxgen.errors import ConfigError, DataError, nearest


def documents(
    settings: DataSettings,
    tally: Tally | None = None,
    *,
    form: Form = "text",
    files: Sequence[str] | None = None,
) -> Iterator[Document]:
    """Yield the corpus: .txt one document a file, .jsonl one a line, .parquet one a row.

    form: pairs and classes have two sides, from two parallel files, line by line, or from two
    fields of a record. files: globs to read instead of settings.files.

    A byte order mark is dropped, CRLF becomes LF; texts that are empty are left out and counted.
    Raises DataError for a malformed record unless settings.on_bad_record is "skip", ConfigError
    if the settings name no corpus or an extra is not installed.
    """
    tally = Tally() if tally is None else tally
    check_form(settings, form)
    if settings.corpus and files is None:
        for document in CORPORA[form][settings.corpus]():
            tally.read += sum(len(text.encode()) for text in document.texts)
            yield document
        return
    keys = settings.sides or (settings.field,)
    for source in sources(settings.files if files is None else files, settings.sides):
        yield from _of_source(source, keys, settings, tally)


def paths(settings: DataSettings) -> list[Path]:
    """Return all files that the globs match, each once, in order of glob and name.

    Raises DataError for a glob without a match, a folder's worth of nothing, or an unknown type.
    """
    globs = (*settings.files, *settings.valid_files, *settings.test_files)
    found = [path for source in sources(globs, settings.sides) for path in source]
    return list(dict.fromkeys(found))


def check_form(settings: DataSettings, form: Form) -> None:
    """Raise ConfigError if the settings name no text, or none of the form that is wanted."""
    if settings.corpus:
        if settings.corpus not in CORPORA[form]:
            able = ", ".join(CORPORA[form]) or "none that is built in"
            raise ConfigError(
                f"data.corpus={settings.corpus} holds no {form}; of the corpora {able} does, "
                f"or give data.files and data.sides"
            )
        return
    if not settings.files:
        raise ConfigError(
            "data names no text; set data.files, or data.corpus to python-docs or python-docstrings"
        )
    if form == "text" and settings.sides:
        raise ConfigError(
            f"data.sides={list(settings.sides)} has no effect on plain text; remove it, or set "
            f"objective.name to pairs or classes"
        )
    if form != "text" and not settings.sides:
        raise ConfigError(f"data.sides=[] but {form} have two; write their names, as in [en, de]")


def _of_source(
    source: Source, keys: tuple[str, ...], settings: DataSettings, tally: Tally
) -> Iterator[Document]:
    def bad(error: Bad) -> None:
        if settings.on_bad_record == "stop":
            raise DataError(f"{error}; mend it, or set data.on_bad_record: skip") from error
        tally.skipped[error.reason] += 1

    with ground.refusals(source[0]):
        try:
            for path in source:
                if path.stat().st_size == 0:
                    raise Bad("empty file", f"{path} is empty")
            read = READERS[kind_of(source[0])] if len(source) == 1 else _parallel
            for texts in read(source, keys, tally, bad):
                if all(texts):
                    yield Document(texts[0], str(source[0]), *texts[1:])
                else:
                    tally.skipped["empty text"] += 1
        except Bad as error:  # what ends the file, not one record of it
            bad(error)


def _parallel(
    source: Source, keys: tuple[str, ...], tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    for number, sides in enumerate(parallel(source, tally), 1):
        try:
            yield tuple(
                _of_side(line, f"{path}:{number}", first=number == 1)
                for line, path in zip(sides, source, strict=True)
            )
        except Bad as error:
            bad(error)


def _of_side(line: bytes, where: str, *, first: bool) -> str:
    line = line.removeprefix(b"\xef\xbb\xbf") if first else line
    return _sound(_decoded(line, where, len(line)), where).strip()


def _text_file(
    source: Source, keys: tuple[str, ...], tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    path, raw = source[0], bytearray()
    if len(keys) > 1:
        raise Bad(
            "one side",
            f"{path} has one side of {' and '.join(keys)}; write the glob with {{side}}, as in "
            f"train.{{side}}.txt, or give .jsonl",
        )
    for block in blocks(path, tally):
        raw += block
        if len(raw) > MAX_RECORD:
            raise Bad(
                "too long",
                f"{path} is a text of more than {ground.human(MAX_RECORD)}; split it into files",
            )
    text = _decoded(bytes(raw.removeprefix(b"\xef\xbb\xbf")), str(path), len(raw))
    yield (_sound(text.replace("\r\n", "\n"), str(path)),)


def _json_lines(
    source: Source, keys: tuple[str, ...], tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    path, place = source[0], 0
    for number, line in enumerate(lines(path, tally), 1):
        where = f"{path}:{number}"
        whole = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            if whole.strip():
                yield _of_line(whole, keys, where, place + len(line) - len(whole))
        except Bad as error:
            bad(error)
        place += len(line) + 1


def _of_line(line: bytes, keys: tuple[str, ...], where: str, place: int) -> tuple[str, ...]:
    try:
        record = json.loads(_decoded(line, where, len(line), place))
    except Bad:
        raise
    except (ValueError, RecursionError) as error:
        raise Bad("not JSON", f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise Bad("not an object", f"{where} is {_name(record)}, not an object with {keys[0]!r}")
    return tuple(_field(record, key, where) for key in keys)


def _field(record: dict, key: str, where: str) -> str:
    if key not in record:
        near = (
            nearest(key, record) or f"; it has {', '.join(map(repr, list(record)[:8])) or 'none'}"
        )
        raise Bad("no such field", f"{where} has no field {key!r}{near}")
    if not isinstance(record[key], str):
        raise Bad("not a string", f"{where}: {key!r} is {_name(record[key])}, not a string")
    return _sound(record[key], where)


def _parquet(
    source: Source, keys: tuple[str, ...], tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    path = source[0]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the `pyarrow` package: pip install 'jaxgen[parquet]'"
        ) from error
    opened: Any = path
    if path.suffix == ".gz":
        opened = pyarrow.BufferReader(b"".join(blocks(path, tally)))
    else:
        tally.read += path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(opened) as table:
            for key in keys:
                _check_column(table.schema_arrow, key, path)
            number = 0
            for batch in table.iter_batches(columns=list(keys), batch_size=1024):
                for values in zip(*(batch.column(key) for key in keys), strict=True):
                    number += 1
                    where = f"{path}: row {number}"
                    try:
                        yield tuple(map(_of_cell, values, keys, [where] * len(keys)))
                    except Bad as error:
                        bad(error)
    except (pyarrow.ArrowException, OSError) as error:
        raise Bad("damaged", f"{path} is no whole Parquet file: {error}") from error


def _check_column(schema: Any, key: str, path: Path) -> None:
    import pyarrow

    if key not in schema.names:
        near = nearest(key, schema.names) or f"; it has {', '.join(map(repr, schema.names[:8]))}"
        raise Bad("no such field", f"{path} has no column {key!r}{near}")
    column = schema.field(key).type
    if not (pyarrow.types.is_string(column) or pyarrow.types.is_large_string(column)):
        raise Bad("not a string", f"{path}: column {key!r} holds {column}, not strings")


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


READERS: dict[str, Callable[..., Iterator[tuple[str, ...]]]] = {
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
