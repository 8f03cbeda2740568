"""Changes of a text: a pure function of the text, its settings and a source of chance.

EDA (Wei & Zou 2019): words are replaced, inserted, swapped and deleted; here what replaces a word
is near it by word vectors. Letters are exchanged as by a slip on a keyboard or by a reader of
scanned pages. Words of a list are exchanged for their counterparts (Maudslay et al. 2019).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from jaxgen import files
from jaxgen.data.augment.settings import NEAR, OF_TEXT, AugmentSettings
from jaxgen.data.augment.words import Neighbours, cased, neighbours_of, read_neighbours, split
from jaxgen.errors import ConfigError, DataError

CANDIDATES = 8  # near words that one is drawn from
MOST = 20_000  # texts that word vectors are made of
LARGEST = 1 << 30  # bytes of a file that is read
_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
# What a reader of scanned pages takes for another.
_SCANNED = (
    ("rn", "m"), ("m", "rn"), ("cl", "d"), ("d", "cl"), ("vv", "w"), ("w", "vv"), ("o", "0"),
    ("0", "o"), ("l", "1"), ("1", "l"), ("i", "l"), ("l", "i"), ("e", "c"), ("c", "e"), ("h", "b"),
    ("b", "h"), ("s", "5"), ("5", "s"), ("g", "9"), ("9", "g"), ("t", "f"), ("f", "t"), ("u", "v"),
)  # fmt: skip


def _beside() -> dict[str, str]:
    """Return the keys beside each key, in its row and half a key aside in those next to it."""
    at = {key: (x + y / 2, y) for y, row in enumerate(_ROWS) for x, key in enumerate(row)}
    return {
        key: "".join(k for k, (a, b) in at.items() if k != key and abs(a - x) <= 1 >= abs(b - y))
        for key, (x, y) in at.items()
    }


KEYS = _beside()
SCANS: dict[str, tuple[str, ...]] = {}
for _one, _other in _SCANNED:
    SCANS[_one] = (*SCANS.get(_one, ()), _other)
SCANNED = re.compile("|".join(sorted(map(re.escape, SCANS), key=len, reverse=True)))


@dataclass(frozen=True, eq=False)
class Tools:
    """What a change reads beside the text: near words, counterparts, and variants of texts."""

    near: Neighbours | None = field(default=None, repr=False)
    others: Mapping[str, str] = field(default_factory=dict, repr=False)
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)


def read_tools(settings: AugmentSettings, texts: Callable[[], Sequence[str]]) -> Tools:
    """Return what a change reads; texts: what word vectors are made of, where no file has them.

    Raises ConfigError or DataError for a file that can't be read.
    """
    if settings.kind in NEAR:
        if settings.file is None:
            return Tools(near=neighbours_of(texts()[:MOST]))
        return Tools(near=read_neighbours(settings.file))
    if settings.kind == "counterfactual":
        return Tools(others=_counterparts(settings.file))
    return Tools(variants=_variants(settings.file)) if settings.kind == "variants" else Tools()


def digest(settings: Sequence[AugmentSettings]) -> str:
    """Return what is the same as long as changes are: of their settings, and of their files."""
    about = sha256()
    for one in settings:
        about.update(repr(one).encode())
        if one.file is not None:
            about.update(files.read_artifact(one.file, "file of data.augment", LARGEST))
    return about.hexdigest()[:16]


def change(text: str, settings: AugmentSettings, tools: Tools, chance: random.Random) -> str:
    """Return the text as it is after a change of a kind in OF_TEXT, or after variants.

    Never empty unless the text is; a text in which nothing of the kind can change stays.
    """
    if settings.kind == "variants":
        variants = tools.variants.get(text, ())
        return _one_of(variants, chance) if variants else text
    assert settings.kind in OF_TEXT, settings.kind
    if settings.kind in ("keyboard", "ocr"):
        return _noise(text, settings, chance)
    pieces = split(text)
    if settings.kind == "counterfactual":
        pieces[1::2] = [
            cased(tools.others[word.lower()], word) if word.lower() in tools.others else word
            for word in pieces[1::2]
        ]
        return "".join(pieces)
    return _CHANGES[settings.kind](pieces, settings, tools, chance)


def _some(places: Sequence[Any], rate: float, chance: random.Random) -> list[Any]:
    """Return a part of places, at least one, in random order."""
    order = sorted((chance.random(), place) for place in range(len(places)))
    return [places[place] for _, place in order[: max(round(rate * len(places)), 1)]]


def _one_of(options: Sequence[Any], chance: random.Random) -> Any:
    return options[int(chance.random() * len(options))]


def _near(word: str, settings: AugmentSettings, tools: Tools, chance: random.Random) -> str | None:
    assert tools.near is not None
    near = tools.near.near(word, CANDIDATES, settings.similarity)
    return cased(_one_of(near, chance)[0], word) if near else None


def _replaced(pieces: list[str], settings, tools: Tools, chance: random.Random) -> str:
    places = [n for n in range(1, len(pieces), 2)
              if tools.near and tools.near.near(pieces[n], 1, settings.similarity)]  # fmt: skip
    for place in _some(places, settings.rate, chance):
        pieces[place] = _near(pieces[place], settings, tools, chance) or pieces[place]
    return "".join(pieces)


def _inserted(pieces: list[str], settings, tools: Tools, chance: random.Random) -> str:
    words = pieces[1::2]
    for word in _some(words, settings.rate, chance):
        if near := _near(word, settings, tools, chance):
            place = 1 + 2 * int(chance.random() * (len(pieces) // 2))
            pieces[place:place] = [near.lower(), " "]
    return "".join(pieces)


def _swapped(pieces: list[str], settings, tools: Tools, chance: random.Random) -> str:
    places = range(1, len(pieces), 2)
    for one in _some(places, settings.rate, chance) if len(places) > 1 else ():
        other = _one_of([place for place in places if place != one], chance)
        pieces[one], pieces[other] = pieces[other], pieces[one]
    return "".join(pieces)


def _deleted(pieces: list[str], settings, tools: Tools, chance: random.Random) -> str:
    places = range(1, len(pieces), 2)
    for place in _some(places, settings.rate, chance)[: len(places) - 1]:
        pieces[place] = ""
        before = pieces[place - 1]
        if before.endswith(" "):  # with the blank before it
            pieces[place - 1] = before[:-1]
    return "".join(pieces).lstrip(" ")


_CHANGES = {"replace": _replaced, "insert": _inserted, "swap": _swapped, "delete": _deleted}


def _noise(text: str, settings: AugmentSettings, chance: random.Random) -> str:
    if settings.kind == "keyboard":
        places = [(n, n + 1, KEYS[c.lower()]) for n, c in enumerate(text) if c.lower() in KEYS]
    else:
        places = [(*m.span(), SCANS[m[0]]) for m in SCANNED.finditer(text)]
    chosen = sorted(_some(places, settings.rate, chance), reverse=True) if places else []
    for begin, end, options in chosen:
        new = _one_of(options, chance)
        text = text[:begin] + (new.upper() if text[begin].isupper() else new) + text[end:]
    return text


def _counterparts(path: Path | None) -> dict[str, str]:
    """Return the counterpart of each word of a file, in both directions."""
    assert path is not None
    raw = files.read_artifact(path, "file of pairs of words", LARGEST)
    others: dict[str, str] = {}
    for number, line in enumerate(files.lines(raw.decode("utf-8", "replace")), 1):
        words = line.lower().replace(",", " ").split()
        if not words:
            continue
        if len(words) != 2 or words[0] == words[1] or {*words} & others.keys():
            raise DataError(
                f"{path}:{number}: {line[:60]!r} must be two different words, none of which "
                f"another line has"
            )
        others |= {words[0]: words[1], words[1]: words[0]}
    if not others:
        raise DataError(f"{path} holds no pair of words; write two a line, such as: he she")
    return others


def _variants(path: Path | None) -> dict[str, tuple[str, ...]]:
    """Return the variants of each text of a .jsonl file."""
    assert path is not None
    raw = files.read_artifact(path, "file of variants", LARGEST)
    variants_of = {}
    for number, line in enumerate(files.lines(raw.decode("utf-8", "replace")), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, variants = row["text"], tuple(row["variants"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f'{path}:{number} is no {{"text": ..., "variants": [...]}} ({error}); '
                f"`jaxgen augment --variants` writes them"
            ) from None
        variants_of[text] = tuple(v for v in variants if isinstance(v, str) and v.strip())
    return variants_of
