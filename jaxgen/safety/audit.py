"""An audit log whose lines are chained by hashes, so that none is changed or removed unseen.

A line is a JSON object with its number, its time and the hash of the line before. It holds what a
rule did and where, and no text unless the policy says `audit_text: true`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.errors import ConfigError, DataError

FIRST = "0" * 64  # the hash before the first line
TAIL = 1 << 16  # bytes that hold the last line


def append(path: str | os.PathLike, event: Mapping[str, Any]) -> None:
    """Add a line to a log, which several processes may share.

    Raises ConfigError if it can't be written, DataError if its last line is damaged.
    """
    with files.refusals(path), open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number, before = _last(file, path)
        row = {"number": number + 1, "time": round(time.time(), 3), **event, "before": before}
        line = json.dumps({**row, "hash": _hash(row)}, ensure_ascii=False)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def verify(path: str | os.PathLike) -> int:
    """Return the number of lines of a log that is as it was written.

    Raises DataError that names the first line which is not: changed, removed, or put in. That lines
    are missing at the end no log can tell by itself: keep the last hash elsewhere.
    """
    before, count = FIRST, 0
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"log {path}: {error.strerror or error}; correct the path") from None
    for count, line in enumerate(lines, 1):
        row = _row(line, path, count)
        stated = row.pop("hash", None)
        if row.get("before") != before:
            raise DataError(f"{path}:{count} does not follow the line before it: one was removed, "
                            f"put in or moved")  # fmt: skip
        if stated != _hash(row):
            raise DataError(f"{path}:{count} has been changed: its hash is of another line")
        before = stated
    return count


def _last(file: Any, path: str | os.PathLike) -> tuple[int, str]:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return 0, FIRST
    file.seek(max(0, size - TAIL))
    raw = file.read()
    if not raw.endswith(b"\n"):
        raise DataError(f"{path}: its last line is cut off; move the file away, and keep it")
    row = _row(raw.splitlines()[-1], path, "last line")
    if row.get("hash") != _hash({k: v for k, v in row.items() if k != "hash"}):
        raise DataError(f"{path}: its last line has been changed; move the file away, and keep it")
    return int(row["number"]), row["hash"]


def _row(line: bytes, path: str | os.PathLike, number: int | str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DataError(f"{path}:{number} is no line of an audit log; it has been changed")
    return row


def _hash(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
