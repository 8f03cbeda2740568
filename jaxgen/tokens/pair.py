"""Where tokens come from: those of one text, and of two in one row, as a question and a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxgen.errors import ConfigError
from jaxgen.tokens.protocol import Tokenizer


class TokenSpan(NamedTuple):
    """The characters [begin, end) of a token, and whether it goes on with the word before it."""

    begin: int
    end: int
    continues: bool


def locate(tokenizer: Tokenizer, text: str) -> list[TokenSpan]:
    """Return where each token of `tokenizer.encode(text)` comes from.

    A word ends at a space, unless the pieces of a tokenizer.json say where one goes on, as
    WordPiece's do. Raises ConfigError where the tokenizer rewrites texts, so that nothing can be
    found again.
    """
    own = getattr(tokenizer, "locate", None)
    if own is not None:
        return own(text)
    spans = _places(tokenizer, text, tokenizer.encode(text))
    ends = [0, *(end for _, end in spans)]  # a token may be a part of a character
    return [
        TokenSpan(begin, end, begin < before or goes_on(text, begin))
        for before, (begin, end) in zip(ends, spans, strict=False)
    ]


def goes_on(text: str, begin: int) -> bool:
    """Return whether a token that begins there is inside a word, as far as spaces tell."""
    return begin > 0 and " " not in text[begin - 1 : begin + 1]


def _places(tokenizer: Tokenizer, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """Return the characters of each token, from the bytes that its piece spells."""
    surface = getattr(tokenizer, "surface", None)
    if surface is None or tokenizer.decode(ids) != text:
        raise ConfigError("the tokenizer rewrites texts, so nothing can be found in them again")
    sizes = [len(surface.pieces[token]) for token in ids]
    return _characters(text, sizes, surface.drop_space)


@dataclass(frozen=True)
class Pair:
    """A row of ids. types: 0 or 1, of BERT's two segments.

    spans: for each token the characters [begin, end) of the second text that it stands for, those
    of its whole word; None for tokens of the first text and special ones.
    """

    ids: list[int]
    types: list[int]
    spans: list[tuple[int, int] | None]


def pairs(tokenizer: Tokenizer, first: str, second: str, *, width: int, stride: int) -> list[Pair]:
    """Return the rows of at most `width` tokens in which the second text is read in windows.

    Windows overlap by `stride` tokens. A tokenizer.json lays the row as it declares; any other
    puts first and second between bos and eos, and an eos between them. Raises ConfigError where
    the first text leaves no room, or the tokenizer rewrites texts, so that nothing can be found
    again.
    """
    window = getattr(tokenizer, "windows", None)
    if window is not None:
        return window(first, second, width, stride)
    special, ids = tokenizer.special, tokenizer.encode(second)
    places = _places(tokenizer, second, ids)
    begin, end = ([] if token is None else [token] for token in (special.bos, special.eos))
    head = [*begin, *tokenizer.encode(first), *end]
    room = width - len(head) - len(end)
    check_room(first, len(head), room, stride)
    rows = []
    for at in range(0, len(ids), room - stride):
        part = slice(at, at + room)
        row = [*head, *ids[part], *end]
        types = [0] * len(head) + [1] * (len(row) - len(head))
        spans = [*[None] * len(head), *places[part], *[None] * len(end)]
        rows.append(Pair(row, types, spans))
        if at + room >= len(ids):
            break
    return rows


def check_room(first: str, used: int, room: int, stride: int) -> None:
    """Raise ConfigError unless windows of `room` tokens that overlap by `stride` go forward."""
    if room <= stride:
        raise ConfigError(
            f"question {first[:40]!r} with its marks takes {used} tokens and leaves {max(room, 0)} "
            f"for the text, but windows overlap by {stride}; shorten it, or lower the overlap"
        )


def _characters(text: str, sizes: list[int], drops_space: bool) -> list[tuple[int, int]]:
    """Return the characters of each token, from the bytes that tokens spell."""
    byte_at, owner = [], 0
    for owner, character in enumerate(text):
        byte_at += [owner] * len(character.encode())
    byte_at.append(len(text))
    offset, spans = -1 if drops_space else 0, []
    for size in sizes:
        last = max(offset + size, 0)
        begin = byte_at[min(max(offset, 0), len(byte_at) - 1)]
        inside = last > max(offset, 0)
        spans.append((begin, byte_at[last - 1] + 1 if inside else begin))
        offset += size
    return spans
