"""Checks of what a record holds."""

from __future__ import annotations

from typing import Any

from jaxgen.data.streams import Bad


def sound_text(text: str, where: str) -> str:
    """Return a text with LF for CRLF; Bad if it holds a NUL or half a surrogate pair."""
    if (offset := text.find("\0")) >= 0:
        raise Bad("NUL", f"{where} holds a NUL, at character {offset} of its text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Bad(
            "lone surrogate",
            f"{where} holds the lone surrogate U+{ord(text[error.start]):04X}, at character "
            f"{error.start} of its text",
        ) from error
    return text.replace("\r\n", "\n")


def kind_name(value: Any) -> str:
    """Return what JSON calls a value."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
