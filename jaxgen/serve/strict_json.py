"""Bodies of requests: JSON read strictly, within bounds that are known before it is parsed."""

from __future__ import annotations

import json
import re
from typing import Any

from jaxgen.serve.problems import Problem

DEPTH = 64  # brackets within each other
DIGITS = 40  # of a number
# A text that does not end takes the rest, so that looking never costs more than one pass.
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)


def read_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; Problem 400 if it is anything else, however wrong.

    UTF-8 alone; no key twice, no NaN or Infinity, no number past float64, no lone surrogate.
    """
    if not raw.strip():
        raise Problem("the body is empty; send a JSON object")
    _check_depth(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(f"byte {error.start} of the body is not UTF-8; send JSON in UTF-8") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except Problem:
        raise
    except RecursionError:
        raise Problem("the body is nested too deeply") from None
    except ValueError as error:
        raise Problem(f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        kind = "null" if value is None else type(value).__name__
        raise Problem(f"the body is {kind}, not an object; send {{...}}")
    try:  # half of a surrogate pair, written as an escape
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise Problem(f"the body holds the lone surrogate {half}; remove it") from None
    return value


def _check_depth(raw: bytes) -> None:
    depth = 0
    for found in _TOKENS.finditer(raw):
        mark = found[0][:1]
        depth += mark in b"[{"
        depth -= mark in b"]}"
        if depth > DEPTH:
            raise Problem(f"the body is nested more than {DEPTH} deep; flatten it")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise Problem(f"the key {twice!r:.80} is there twice; send it once", param=twice[:80])
    return made


def _constant(name: str) -> Any:
    raise Problem(f"{name} is no JSON number; send a finite one")


def _float(text: str) -> float:
    number = float(text) if len(text) <= 10 * DIGITS else float("inf")
    if number in (float("inf"), float("-inf")):
        raise Problem(f"the number {text[:40]} is past what a float64 holds")
    return number


def _int(text: str) -> int:
    if len(text) > DIGITS:
        raise Problem(f"a number of the body has {len(text)} digits, more than {DIGITS}")
    return int(text)
