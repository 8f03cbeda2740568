"""BPE-dropout: the pieces of a word when some merges are left out by chance."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Mapping

WORD = re.compile("\u2581*[^\u2581]+|\u2581+")  # no piece has a space after anything else
NONE = sys.maxsize  # the rank of what is no piece


def split_with_dropout(
    text: str, ranks: Mapping[str, int], dropout: float, chance: random.Random
) -> Iterator[str]:
    """Yield the pieces of a text that is written as sentencepiece does, with U+2581 for a space.

    ranks: of each piece, the merge into the lowest first. At each step each possible merge is left
    out with probability `dropout`; where all are, the word stays as it is (Provilkov et al. 2020,
    algorithm 1). A character that is no piece comes as it is.
    """
    for word in WORD.findall(text):
        yield from _merge_with_dropout(list(word), ranks, dropout, chance)


def _merge_with_dropout(
    pieces: list[str], ranks: Mapping[str, int], dropout: float, chance: random.Random
) -> list[str]:
    while True:
        best, index = NONE, -1
        for i in range(len(pieces) - 1):
            rank = ranks.get(pieces[i] + pieces[i + 1], NONE)
            # Chances are independent, so only a merge that would be made needs to take one.
            if rank < best and (not dropout or chance.random() >= dropout):
                best, index = rank, i
        if index < 0:
            return pieces
        pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
