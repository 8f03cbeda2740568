"""Where prompts come from: the command line, files, standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxgen import files, settings
from jaxgen.errors import BusyError, ConfigError
from jaxgen.text.request import Generation


def gather(words: Sequence[str]) -> list[str]:
    """Return the prompts that the words of --prompt stand for; without any, standard input.

    "@FILE" is a file's content, "-" standard input, "@@..." a text that begins with "@". One
    newline at the end of a file or input is dropped. Raises ConfigError for an empty prompt, or
    for bytes that are not UTF-8.
    """
    if sum(word == "-" for word in words) > 1:
        raise ConfigError("--prompt - is given twice, but standard input can be read only once")
    return [_checked(*_read(word)) for word in words or ("-",)]


def _read(word: str) -> tuple[str, str]:
    """Return (text, where it comes from)."""
    if word == "-":
        return _decode(sys.stdin.buffer.read(), "standard input"), "standard input"
    if word.startswith("@@"):
        return word[1:], "--prompt"
    if word.startswith("@"):
        path = Path(word[1:])
        try:
            with files.refusals(path):
                return _decode(path.read_bytes(), str(path)), str(path)
        except BusyError as error:
            raise ConfigError(f"--prompt {word}: {error}; for a text write @{word}") from None
    return word, "--prompt"


def _decode(raw: bytes, source: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        raise ConfigError(
            f"{source} is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset}; convert it first"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _checked(text: str, source: str) -> str:
    if not text:
        raise ConfigError(f"the prompt from {source} is empty; give at least one character")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # how Python hands over bytes of argv that are not UTF-8
        raise ConfigError(
            f"the prompt from {source} is not UTF-8 at character {error.start}; convert it first"
        ) from None
    return text


def lines(name: str, wanted: Generation) -> list[tuple[str, Generation]]:
    """Return (prompt, settings) of each line of a JSONL file; a key of a line overrules `wanted`.

    A line is an object with a "prompt" and any settings by the names that Python has for them.
    Raises ConfigError with file and line for what is no such object.
    """
    path, found = Path(name), []
    try:
        with files.refusals(path):
            raw = path.read_bytes()
    except BusyError as error:
        raise ConfigError(f"--prompts-file {name}: {error}") from None
    for number, line in enumerate(_decode(raw, name).split("\n"), 1):
        if line.strip():
            found.append(_line(line, f"{name}:{number}", wanted))
    if not found:
        raise ConfigError(f"--prompts-file {name} has no line; write one JSON object a prompt")
    return found


def _line(line: str, place: str, wanted: Generation) -> tuple[str, Generation]:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is no JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
        raise ConfigError(f'{place} must be an object with a text "prompt"; got {line[:60]!r}')
    prompt = _checked(given.pop("prompt"), place)
    try:
        return prompt, settings.build(Generation, settings.as_dict(wanted) | given)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
