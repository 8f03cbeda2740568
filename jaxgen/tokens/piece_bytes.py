"""The bytes of a piece of a tokenizer.json, read off the steps of its decoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>", re.ASCII)


def steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a tokenizer.json's decoder."""
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def reader(steps: list[dict[str, Any]]) -> Callable[[str], bytes] | None:
    """Return what makes a piece's bytes where a decoder does nothing but join them, else None.

    Every setting of every step counts: what is not known here is left to the library.
    """
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _byte_level
    if kinds in (["Fuse"], ["ByteFallback", "Fuse"]):
        return partial(_spaced, " ", bytes_too="ByteFallback" in kinds)
    if kinds == ["Metaspace"]:
        return partial(_spaced, steps[0]["replacement"], bytes_too=False)
    kinds = kinds[:-1] if steps[-1:] == [STRIP] else kinds
    if kinds in (["Replace", "Fuse"], ["Replace", "ByteFallback", "Fuse"]):
        mark = steps[0]["pattern"].get("String")
        if mark and steps[0]["content"] == " ":
            return partial(_spaced, mark, bytes_too="ByteFallback" in kinds)
    return None


def drops_space(steps: list[dict[str, Any]]) -> bool:
    """Return whether the steps, which `reader` knows, drop the first space of a text."""
    return steps[-1] == STRIP or steps[0].get("prepend_scheme", "never") != "never"


def _spaced(mark: str, name: str, *, bytes_too: bool) -> bytes:
    if bytes_too and BYTE.fullmatch(name):
        return bytes([int(name[3:5], 16)])
    return name.replace(mark, " ").encode()


def _byte_level(name: str) -> bytes:
    try:
        return bytes(BYTE_OF[character] for character in name)
    except KeyError:
        return name.encode()


def _byte_of() -> dict[str, int]:
    """Return GPT-2's printable character of each byte, reversed (its encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


BYTE_OF = _byte_of()
