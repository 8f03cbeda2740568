"""What the rest of the house knows of a tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Protocol, runtime_checkable

import numpy as np

from jaxgen.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Special:
    """Ids that stand for no text: begin and end of a document, padding; None where undeclared."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back; text never yields a special id, ids are below `vocab_size`.

    byte_lengths: [V] UTF-8 bytes of the text each id stands for, 0 for special ids. fingerprint:
    sha256 (hex) of all that decides the ids. save: write a new folder that `tokens.load` reads.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def special(self) -> Special: ...
    @property
    def byte_lengths(self) -> np.ndarray: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_many(self, texts: Iterable[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, path: str | PathLike) -> None: ...


@dataclass(frozen=True)
class Surface:
    """The bytes each id stands for, where decoding is nothing but joining them.

    drop_space: the first text of a sequence begins with a space that the encoder has added.
    """

    pieces: tuple[bytes, ...]
    drop_space: bool = False

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD. DataError if outside."""
        check_ids(ids, len(self.pieces))
        raw = b"".join(map(self.pieces.__getitem__, ids))
        if self.drop_space and raw.startswith(b" "):
            raw = raw[1:]
        return raw.decode("utf-8", errors="replace")

    def lengths(self) -> np.ndarray:
        """Return the [V] int32 bytes of each piece."""
        return np.asarray([len(piece) for piece in self.pieces], np.int32)


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raise DataError for an id that the vocabulary does not have."""
    if len(ids) and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(i for i in ids if not 0 <= i < vocab_size)
        raise DataError(f"token id {wrong} is outside the vocabulary of {vocab_size}")


def marked(
    text: str, marks: Sequence[str], plain: Sequence[tuple[int, int]]
) -> Iterator[tuple[str, bool]]:
    """Yield (part of the text, whether it is a mark) in turn; within the spans `plain` none is.

    marks: regular expressions, of which those of long marks come first.
    """
    pattern = re.compile("|".join(marks) or "(?!)")
    offset = start = 0
    while match := pattern.search(text, offset):
        begin, end = match.span()
        if any(low < end and begin < high for low, high in plain):
            offset = begin + 1
            continue
        if begin > start:
            yield text[start:begin], False
        yield match[0], True
        offset = start = end
    if start < len(text):
        yield text[start:], False


def not_unicode(text: str, error: UnicodeEncodeError) -> DataError:
    """Return the error for a text that holds half of a surrogate pair."""
    return DataError(
        f"character {error.start} of the text is the lone surrogate "
        f"U+{ord(text[error.start]):04X}, which no UTF-8 can hold; remove it"
    )


def fingerprint(kind: str, model: bytes, special: Special) -> str:
    """Return the sha256 (hex) that identifies a tokenizer."""
    about = json.dumps([kind, asdict(special)], sort_keys=True).encode()
    return hashlib.sha256(about + b"\0" + model).hexdigest()
