"""What the verbs read: words of the command line, files, and standard input as "-"."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxgen import files, settings
from jaxgen.errors import ConfigError, UserError
from jaxgen.text.request import Generation


def read_text(
    source: str,
    option: str,
    *,
    remedy: str = "correct the path",
    undecodable: type[UserError] = ConfigError,
) -> str:
    """Return the text of a file, or of standard input for "-".

    option: what named the file, for messages. remedy: what to do where there is no such file.
    Raises ConfigError if it can't be read, `undecodable` if it is not UTF-8.
    """
    name = "standard input" if source == "-" else source
    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option}: {reason}; {remedy}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        raise undecodable(
            f"{name} is not UTF-8: byte 0x{raw[offset]:02x} at offset {offset}; convert it first"
        ) from None


def texts(words: Sequence[str], source: str | None) -> list[str]:
    """Return the words, or else the lines of `source` (None: standard input).

    Raises ConfigError for words and a source, for no text at all, and for an empty line.
    """
    if words and source is not None:
        raise ConfigError(f"--input {source} and {len(words)} texts exclude each other; remove one")
    if words:
        return list(words)
    source = source or "-"
    lines = files.lines(read_text(source, f"--input {source}"))
    empty = next((n for n, text in enumerate(lines, 1) if not text.strip()), None)
    if empty or not lines:
        name = "standard input" if source == "-" else source
        raise ConfigError(
            f"{name} has no text in line {empty or 1}; write one there, or remove the line: each "
            f"line has a result"
        )
    return lines


def prompts(words: Sequence[str], option: str = "--prompt") -> list[str]:
    """Return the prompts that the words of an option stand for; without any, standard input.

    "@FILE" is a file's content, "-" standard input, "@@..." a text that begins with "@". One
    newline at the end of a file or input is dropped. Raises ConfigError for an empty prompt, or
    for bytes that are not UTF-8.
    """
    if sum(word == "-" for word in words) > 1:
        raise ConfigError(f"{option} - is given twice, but standard input can be read only once")
    return [_prompt(word, option) for word in words or ("-",)]


def _prompt(word: str, option: str) -> str:
    if word.startswith("@@"):
        return _check(word[1:], option)
    if word != "-" and not word.startswith("@"):
        return _check(word, option)
    source = word.removeprefix("@")
    remedy = f"for a text write @{word}"
    text = read_text(source, f"{option} {word}", remedy=remedy)
    text = text.removesuffix("\n").removesuffix("\r")
    return _check(text, "standard input" if word == "-" else source)


def _check(text: str, source: str) -> str:
    if not text:
        raise ConfigError(f"the text from {source} is empty; give at least one character")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # how Python hands over bytes of argv that are not UTF-8
        raise ConfigError(
            f"the text from {source} is not UTF-8 at character {error.start}; convert it first"
        ) from None
    return text


def objects(
    source: str,
    keys: Sequence[str],
    option: str = "--input",
    more: str = "",
    refusal: type[UserError] = ConfigError,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return ("FILE:LINE", object) of each line of a .jsonl file that is not blank.

    more: what else can be done with lines that are no objects, for messages. Raises ConfigError
    for a file that can't be read, `refusal` for one without lines, and for a line that is no object
    with the keys.
    """
    lines = files.lines(read_text(source, f"{option} {source}", undecodable=refusal))
    if not any(line.strip() for line in lines):
        raise refusal(f"{option} {source} has no line; write one JSON object a line")
    return parse_objects(lines, source, keys, more, refusal)


def parse_objects(
    lines: Sequence[str],
    source: str,
    keys: Sequence[str],
    more: str = "",
    refusal: type[UserError] = ConfigError,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("SOURCE:LINE", object) of each line that is not blank; errors as of `objects`."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            example = "{" + ", ".join(f'"{key}": ...' for key in keys) + "}"
            raise refusal(
                f"{source}:{number} is no JSON ({error}); write an object a line, as "
                f"{example}{more}"
            ) from None
        if lost := [key for key in keys if not isinstance(row, dict) or key not in row]:
            raise refusal(
                f"{source}:{number} is no object with {' and '.join(lost)}; got {line[:60]!r}"
            )
        yield f"{source}:{number}", row


def prompts_file(name: str, wanted: Generation) -> list[tuple[str, Generation]]:
    """Return (prompt, settings) of each line of a JSONL file; a key of a line overrules `wanted`.

    A line is an object with a "prompt" and any settings by the names that Python has for them.
    Raises ConfigError with file and line for what is no such object.
    """
    pairs = []
    plain = f"; for all of it as one prompt: --prompt {name if name == '-' else f'@{name}'}"
    for position, row in objects(name, ["prompt"], "--prompts-file", plain):
        prompt = row.pop("prompt")
        if not isinstance(prompt, str):
            raise ConfigError(f"{position}: the prompt {prompt!r:.60} is no text; quote it")
        prompt = _check(prompt, position)
        try:
            pairs.append((prompt, settings.build(Generation, settings.as_dict(wanted) | row)))
        except ConfigError as error:
            raise ConfigError(f"{position}: {error}") from None
    return pairs
