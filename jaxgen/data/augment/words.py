"""Words of a text, and the words that stand near one: what is replaced, and by what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike

import numpy as np
from jaxtyping import Float

from jaxgen.errors import DataError

WORD = re.compile(r"(\w+(?:['’]\w+)*)")
WINDOW = 4  # words to each side that stand together
MOST, WIDTH = 4000, 64  # words that get vectors of their own, and numbers of one
ROUNDS = 4  # of the subspace iteration


def split(text: str) -> list[str]:
    """Return what stands between words, and words, in turn: a word at each odd place."""
    return WORD.split(text)


def words_of(text: str) -> list[str]:
    """Return the words of a text."""
    return WORD.findall(text)


def cased(word: str, like: str) -> str:
    """Return a word in lower case, or with the capitals of another."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def frequent(texts: Iterable[str], count: int) -> tuple[str, ...]:
    """Return the most frequent words, in lower case; words as frequent by their letters."""
    counts = Counter(word for text in texts for word in words_of(text.lower()))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:count])


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Words, in lower case, and their vectors [V, D]: which words are near a word."""

    words: tuple[str, ...]
    table: Float[np.ndarray, "V D"] = field(repr=False)

    @cached_property
    def index(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    @cached_property
    def _unit(self) -> np.ndarray:
        norms = np.linalg.norm(self.table, axis=1, keepdims=True)
        return (self.table / np.where(norms > 0, norms, 1)).astype(np.float32)

    @cached_property
    def _near(self) -> dict[tuple[str, int], list[tuple[str, float]]]:
        return {}

    def near(self, word: str, count: int, least: float = -1.0) -> list[tuple[str, float]]:
        """Return up to `count` (word, cosine) of at least `least`, nearest first; [] for none."""
        row = self.index.get(word.lower())
        if row is None:
            return []
        nearest = self._near.get((word.lower(), count))
        if nearest is None:
            cosines = self._unit @ self._unit[row]
            cosines[row] = -np.inf
            some = np.argpartition(-cosines, min(count, len(cosines) - 1))[:count]
            some = sorted(some.tolist(), key=lambda i: (-cosines[i], i))
            nearest = [(self.words[i], float(cosines[i])) for i in some if np.isfinite(cosines[i])]
            self._near[word.lower(), count] = nearest
        return [(other, cosine) for other, cosine in nearest if cosine >= least]


def read_neighbours(path: str | PathLike) -> Neighbours:
    """Return the word vectors of a text file; of words that differ by case, the first one's.

    Raises CheckpointError for a file that `models.classic.vectors` can't load.
    """
    from jaxgen.models.classic import vectors

    loaded, rows = vectors.load(path), dict[str, int]()
    for row, word in enumerate(loaded.words):
        rows.setdefault(word.lower(), row)
    return Neighbours(tuple(rows), loaded.table[list(rows.values())])


def neighbours_of(texts: Sequence[str], seed: int = 0) -> Neighbours:
    """Return vectors of a text's frequent words: its positive pointwise mutual information.

    Of words within WINDOW of each other, reduced to WIDTH numbers (Levy & Goldberg 2014). Raises
    DataError for a text with fewer than two words.
    """
    words = frequent(texts, MOST)
    if len(words) < 2:
        raise DataError("the text has fewer than 2 different words; give more, or word vectors")
    index = {word: row for row, word in enumerate(words)}
    counts = np.zeros((len(words), len(words)), np.float32)
    for text in texts:
        ids = np.array([index.get(word, -1) for word in words_of(text.lower())], np.int64)
        for step in range(1, WINDOW + 1):
            one, other = ids[:-step], ids[step:]
            both = (one >= 0) & (other >= 0)
            np.add.at(counts, (one[both], other[both]), 1.0 / step)
    counts += counts.T
    sums = np.maximum(counts.sum(1, keepdims=True), 1e-9)
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(np.log(counts * counts.sum() / (sums * sums.T)), 0)
    width = min(WIDTH, len(words))
    basis = np.random.default_rng(seed).normal(size=(len(words), width)).astype(np.float32)
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(ppmi @ basis)
    small, sizes, _ = np.linalg.svd(ppmi @ basis, full_matrices=False)
    return Neighbours(words, (small * np.sqrt(sizes)).astype(np.float32))
