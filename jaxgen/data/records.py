"""What the records of a file are for, by the names of their fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxgen import files
from jaxgen.data.settings import FIELD, MESSAGES
from jaxgen.data.sources import RECORDS, kind_of
from jaxgen.data.streams import Bad, Tally, blocks, is_packed, lines

Task = Literal["chat", "pairs", "classes", "preferences", "feedback"]
CHATS = (MESSAGES, "conversations")
SIDES = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("source", "target"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("document", "summary"),
    ("article", "highlights"),
)
LABELS = ("label", "class", "category")
HEAD = 1 << 20  # bytes of a .json array in which its first record ends


def first_record(path: Path) -> dict[str, Any]:
    """Return the first record of a file; of .parquet its columns, without values.

    Nothing for a file of other text, and one that is damaged: reading it says how.
    """
    kind = kind_of(path)
    try:
        with files.refusals(path):
            if kind == ".parquet":
                return _columns(path)
            record = _first_value(path) if kind in RECORDS else None
    except (Bad, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def task_of(record: Mapping[str, Any]) -> Task | None:
    """Return what a record with such fields is for; None: text, or what can't be told."""
    if {"chosen", "rejected"} <= record.keys():
        return "preferences"
    if {"prompt", "completion", "label"} <= record.keys():
        return "feedback"
    if any(name in record for name in CHATS):
        return "chat"
    if classes_sides(record):
        return "classes"
    return "pairs" if any(set(two) <= record.keys() for two in SIDES) else None


def advice(record: Mapping[str, Any], key: str, path: str) -> str:
    """Return what to do about a record that lacks a field."""
    task = task_of(record) if key == FIELD else None
    return f"`jaxgen init {task} {path}` writes a config for such records" if task else "mend it"


def keys_for(task: str, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the keys of the `data` section that read such records for a task; None: it can't."""
    if task == "chat":
        field = next((name for name in CHATS if name in record), None)
        return None if field is None else {} if field == MESSAGES else {"field": field}
    if task in ("preferences", "feedback"):
        return {} if task_of(record) == task else None
    sides = pairs_sides(record) if task == "pairs" else classes_sides(record)
    return None if sides is None else {"sides": list(sides)}


def pairs_sides(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the source and target of a record: by known names, or the only two texts it has."""
    texts = _texts(record)
    known = next((two for two in SIDES if set(two) <= record.keys()), None)
    return known or ((texts[0], texts[1]) if len(texts) == 2 else None)


def classes_sides(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the text and label of a record: a label of a known name, and `text` or the only one.

    A label that is a number counts too, so that reading it can say what is wrong.
    """
    label = next((name for name in LABELS if name in record), None)
    texts = [name for name in _texts(record) if name != label]
    if label is None or not (FIELD in texts or len(texts) == 1):
        return None
    return (FIELD if FIELD in texts else texts[0]), label


def _texts(record: Mapping[str, Any]) -> list[str]:
    return [name for name, value in record.items() if isinstance(value, str)]


def _first_value(path: Path) -> Any:
    blank = b"\xef\xbb\xbf \t\r\n"
    first = next((line.strip(blank) for line in lines(path, Tally()) if line.strip(blank)), b"")
    if kind_of(path) == ".json" and not _is_object(first):
        head = (
            next(blocks(path, Tally()), b"")[:HEAD].decode(errors="ignore").lstrip("\ufeff \t\r\n[")
        )
        return json.JSONDecoder().raw_decode(head)[0]
    return json.loads(first)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _columns(path: Path) -> dict[str, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:  # said when it is read
        return {}
    if is_packed(path):
        return {}
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError):
        return {}
    return {
        field.name: "" if str(field.type) in ("string", "large_string") else None
        for field in schema
    }
