"""The documents of a corpus, in one order, each checked; what is malformed is named by place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import arguments
from jaxgen import files as ground
from jaxgen.data.corpora import CORPORA
from jaxgen.data.document import Document
from jaxgen.data.messages import COMPLETION, PROMPT, as_json, chat_record, messages_field
from jaxgen.data.parquet import read_parquet
from jaxgen.data.preferences import CHOSEN, feedback_record, preference_record
from jaxgen.data.prompts import prompt_record
from jaxgen.data.record_values import kind_name, sound_text
from jaxgen.data.records import advice
from jaxgen.data.settings import DataSettings, Form
from jaxgen.data.sources import Source, kind_of, no_text, parallel, sources, split_sources
from jaxgen.data.streams import MAX_RECORD, Bad, Tally, blocks, lines
from jaxgen.errors import ConfigError, DataError, nearest

FORMS = {"text": "plain text", "messages": "chats"}  # what forms are called


@arguments.checked
@dataclass(frozen=True)
class Whole:
    """What is read of records in the place of texts in fields: all, of which one field is named."""

    form: Form
    field: str

    def read(self, record: Any, where: str) -> tuple[str, str]:
        """Return the record as JSON, and where it stands; Bad if it is none of this form."""
        if not isinstance(record, dict):
            raise _no_object(record, self.field, where)
        value = RECORDS_OF[self.form](record, self.field, where)
        if value is None:
            raise _missing(record, self.field, where)
        return as_json(value, where), where


# What reads a record: (record, name of its main field, where) -> its value, None: it has no such.
RECORDS_OF: dict[Form, Callable[[dict, str, str], Any]] = {
    "messages": chat_record,
    "preferences": preference_record,
    "feedback": feedback_record,
    "prompts": prompt_record,
}
MAIN_FIELDS: dict[Form, str] = {"preferences": CHOSEN, "feedback": COMPLETION, "prompts": PROMPT}
Keys = tuple[str, ...] | Whole  # what a record is asked for
UTF8 = "convert it to UTF-8 (iconv -f latin1 -t utf-8 FILE)"
DEEPEST = 4  # objects in objects whose fields a message lists


def documents(
    settings: DataSettings,
    tally: Tally | None = None,
    *,
    form: Form = "text",
    files: Sequence[str] | None = None,
    only: Sequence[Source] | None = None,
) -> Iterator[Document]:
    """Yield the corpus: .jsonl one document a line, .parquet one a row, any other one a file.

    .ndjson is as .jsonl; .json holds an array of objects, one object, or lines. A field "a.b" is
    the b of the object a, unless there is a field of that name. form: pairs and classes have two
    sides, from two parallel files, line by line, or from two fields of a record; messages are
    chats, whose text is the record as JSON. files: globs to read instead of settings.files, which
    leave out what is validation or test text; only: what they match, of which no more is read.

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
    keys: Keys = settings.sides or (settings.field,)
    if settings.user_field is not None:
        keys = (settings.field, settings.user_field)
    if form in RECORDS_OF:
        keys = Whole(form, MAIN_FIELDS.get(form) or messages_field(settings.field))
    if only is None:
        only = split_sources(settings).train if files is None else sources(files, settings.sides)
    for source in only:
        yield from _of_source(source, keys, settings, tally)


def check_form(settings: DataSettings, form: Form) -> None:
    """Raise ConfigError if the settings name no text, or none of the form that is wanted."""
    if settings.user is not None and form != "text":
        raise ConfigError(
            f"data.user={settings.user} needs plain text, not {form}; leave it out, and take "
            f"objective.name=causal for users"
        )
    if settings.corpus and settings.user_field is not None:
        raise ConfigError(
            f"data.corpus={settings.corpus} has no field {settings.user!r} for data.user; take file"
        )
    if settings.canaries.number and form != "text":
        raise ConfigError(
            f"data.canaries.number={settings.canaries.number} plants plain text, not {form}; take "
            f"objective.name=causal, or leave it out"
        )
    if settings.corpus:
        if settings.corpus not in CORPORA[form]:
            able = ", ".join(CORPORA[form]) or "no other corpus"
            sides = " and data.sides" if form in ("pairs", "classes") else ""
            raise ConfigError(
                f"data.corpus={settings.corpus} holds no {form}, which are in {able}; take such a "
                f"corpus, or give data.files{sides}"
            )
        return
    if not settings.files:
        raise ConfigError(
            "data names no text; set data.files, or data.corpus to python-docs or python-docstrings"
        )
    if form not in ("pairs", "classes") and settings.sides:
        raise ConfigError(
            f"data.sides={list(settings.sides)} has no effect on {FORMS.get(form, form)}; remove "
            f"it, or set objective.name to pairs or classes"
        )
    if form in ("pairs", "classes") and not settings.sides:
        raise ConfigError(f"data.sides=[] but {form} have two; write their names, as in [en, de]")


def refuse(settings: DataSettings, tally: Tally, error: Bad) -> None:
    """Count a malformed record that is left out, or raise DataError if none is to be."""
    if settings.on_bad_record == "stop":
        raise DataError(
            f"{error}; {error.fix}, or leave it out with data.on_bad_record=skip"
        ) from error
    tally.skip(error)


def _of_source(
    source: Source, keys: Keys, settings: DataSettings, tally: Tally
) -> Iterator[Document]:
    bad = partial(refuse, settings, tally)
    with ground.refusals(source[0]):
        try:
            for path in source:
                if path.stat().st_size == 0:
                    raise Bad("empty file", f"{path} is empty")
            read = READERS.get(kind_of(source[0]), _text_file) if len(source) == 1 else _parallel
            if settings.user_field is not None and read is _text_file:
                raise ConfigError(
                    f"data.user={settings.user} is a field of records, but {source[0]} is plain "
                    f"text; take file or folder"
                )
            for texts in read(source, keys, tally, bad):
                if isinstance(keys, Whole):
                    yield Document(texts[0], str(source[0]), place=texts[1])
                elif all(texts) and settings.user is not None:
                    yield Document(texts[0], str(source[0]), user=_user(source[0], texts, settings))
                elif all(texts):
                    yield Document(texts[0], str(source[0]), *texts[1:])
                else:
                    tally.skipped["empty text"] += 1
        except Bad as error:  # what ends the file, not one record of it
            bad(error)


def _user(path: Path, texts: tuple[str, ...], settings: DataSettings) -> str:
    if settings.user_field is not None:
        return texts[1]
    return str(path if settings.user == "file" else path.parent)


def _parallel(source: Source, keys: Keys, tally: Tally, bad: Callable) -> Iterator[tuple[str, ...]]:
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
    return sound_text(_decoded(line, where, len(line)), where).strip()


def _text_file(
    source: Source, keys: Keys, tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    path = source[0]
    if isinstance(keys, Whole):
        raise Bad(
            "no records",
            f"{path} is plain text; {FORMS.get(keys.form, keys.form)} are records with "
            f"{keys.field!r}, as .jsonl",
        )
    if len(keys) > 1:
        raise Bad(
            "one side",
            f"{path} has one side of {' and '.join(keys)}; write the glob with {{side}}, as in "
            f"train.{{side}}.txt, or give .jsonl",
        )
    raw = _whole(path, tally)
    if refusal := no_text(path, raw):
        raise refusal
    text = _decoded(raw.removeprefix(b"\xef\xbb\xbf"), str(path), len(raw))
    yield (sound_text(text, str(path)),)


def _json_lines(
    source: Source, keys: Keys, tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    path, offset = source[0], 0
    for number, line in enumerate(lines(path, tally), 1):
        where = f"{path}:{number}"
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            if text.strip():
                yield _of_line(text, keys, where, offset + len(line) - len(text))
        except Bad as error:
            bad(error)
        offset += len(line) + 1


def _of_line(line: bytes, keys: Keys, where: str, offset: int) -> tuple[str, ...]:
    return _of_record(_parsed(line, where, offset), keys, where)


def _parsed(raw: bytes, where: str, offset: int = 0) -> Any:
    try:
        return json.loads(_decoded(raw, where, len(raw), offset))
    except Bad:
        raise
    except (ValueError, RecursionError) as error:
        raise Bad("not JSON", f"{where} is not JSON: {error}") from error


def _of_record(record: Any, keys: Keys, where: str) -> tuple[str, ...]:
    if isinstance(keys, Whole):
        return keys.read(record, where)
    if not isinstance(record, dict):
        raise _no_object(record, keys[0], where)
    return tuple(_field(record, key, where) for key in keys)


def _json_file(
    source: Source, keys: Keys, tally: Tally, bad: Callable
) -> Iterator[tuple[str, ...]]:
    path = source[0]
    if _has_records_by_line(path):
        yield from _json_lines(source, keys, tally, bad)
        return
    raw = _whole(path, tally).removeprefix(b"\xef\xbb\xbf")
    value = _parsed(raw, str(path))
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        try:
            yield _of_record(record, keys, f"{path}: item {number}")
        except Bad as error:
            bad(error)


def _has_records_by_line(path: Path) -> bool:
    """Return whether the first line of a .json file is an object by itself, as of many it is."""
    blank = b"\xef\xbb\xbf \t\r\n"
    if not next(blocks(path, Tally()), b"").lstrip(blank).startswith(b"{"):
        return False
    first = next(line for line in lines(path, Tally()) if line.strip(blank))
    try:
        return isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _whole(path: Path, tally: Tally) -> bytes:
    raw = bytearray()
    for block in blocks(path, tally):
        raw += block
        if len(raw) > MAX_RECORD:
            raise Bad(
                "too long",
                f"{path} is a text of more than {ground.human(MAX_RECORD)}; split it into files",
            )
    return bytes(raw)


def _no_object(record: Any, key: str, where: str) -> Bad:
    return Bad("not an object", f"{where} is {kind_name(record)}, not an object with {key!r}")


def _missing(record: dict, key: str, where: str) -> Bad:
    keys = list(_keys(record))
    near = nearest(key, keys) or f"; it has {', '.join(map(repr, keys[:8])) or 'none'}"
    fix = advice(record, key, where.rpartition(":")[0])
    return Bad("no such field", f"{where} has no field {key!r}{near}", fix)


def _field(record: dict, key: str, where: str) -> str:
    value: Any = record
    for name in [key] if key in record else key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise _missing(record, key, where)
        value = value[name]
    if not isinstance(value, str):
        raise Bad("not a string", f"{where}: {key!r} is {kind_name(value)}, not a string")
    return sound_text(value, where)


def _keys(record: dict, before: str = "") -> Iterator[str]:
    """Yield the names of all fields, those of objects as "outer.inner"."""
    for name, value in record.items():
        if isinstance(value, dict) and value and before.count(".") < DEEPEST:
            yield from _keys(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


READERS: dict[str, Callable[..., Iterator[tuple[str, ...]]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
    ".parquet": read_parquet,
}


def _decoded(raw: bytes, where: str, size: int, base: int = 0) -> str:
    """Return UTF-8 as text; the offset in an error counts from the beginning of the file."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = base + error.start + size - len(raw)
        raise Bad(
            "not UTF-8",
            f"{where} is not UTF-8 at byte offset {offset} (0x{raw[error.start]:02x})",
            UTF8,
        ) from error
