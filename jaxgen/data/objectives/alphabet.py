"""What an objective needs to know of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Alphabet:
    """Ids with a role, and ids by what they spell.

    start: what a decoder begins with; mask: stands for a token, or a span, that is to be guessed;
    sentinels: stand for the first, second, ... span. words, ends: [V] bool, ids that begin a word,
    and ids that end a sentence. size: ids that may be drawn as a random token.
    """

    size: int
    bos: int | None = None
    eos: int | None = None
    start: int | None = None
    mask: int | None = None
    sentinels: tuple[int, ...] = ()
    words: np.ndarray | None = None
    ends: np.ndarray | None = None
