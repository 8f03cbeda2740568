"""Word vectors: neighbours, analogies, word2vec's text format, and initial embeddings of a model.

The text format is word2vec's and GloVe's: a word and its numbers per line; word2vec's files begin
with a line of the number of words and their width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxgen import files, tree
from jaxgen.errors import CheckpointError, ConfigError, DataError, nearest

Header = Literal["word2vec", "none"]
TABLE = "embed/tokens"
BROKEN = re.compile(r"[ \t\n\v\f\r]")  # white space of C, which ends a word for word2vec.c
SIZES = re.compile(r"(\d+)[ \t]+(\d+)[ \t]*", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Vectors:
    """Words and their vectors [V, D]; raises DataError unless each word has one, once."""

    words: tuple[str, ...]
    table: Float[np.ndarray, "V D"]

    def __post_init__(self) -> None:
        if len(self.words) != len(self.table) or not len(self.words):
            raise DataError(f"{len(self.words)} words but {len(self.table)} vectors")
        if len(self.index) != len(self.words):
            twice = next(w for i, w in enumerate(self.words) if self.index[w] != i)
            raise DataError(f"the word {twice!r} occurs twice")

    @property
    def index(self) -> Mapping[str, int]:
        """Return the row of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def rows(self, words: Sequence[str]) -> list[int]:
        """Return the rows of words; ConfigError naming one that has none."""
        index = self.index
        for word in words:
            if word not in index:
                raise ConfigError(f"the word {word!r} has no vector{nearest(word, index)}")
        return [index[word] for word in words]


def neighbours(vectors: Vectors, word: str, count: int) -> list[tuple[str, float]]:
    """Return the (word, cosine) pairs nearest to a word, nearest first."""
    (row,) = vectors.rows([word])
    return _best(vectors, _unit(vectors.table)[row], {row}, count)


def analogy(vectors: Vectors, a: str, b: str, c: str, count: int) -> list[tuple[str, float]]:
    """Return the words nearest to b - a + c, best first (3CosAdd, Mikolov et al. 2013).

    a, b and c are never answers. Raises ConfigError for a word without a vector, or where
    b - a + c is zero.
    """
    rows = vectors.rows([a, b, c])
    unit = _unit(vectors.table)
    target = unit[rows[1]] - unit[rows[0]] + unit[rows[2]]
    norm = float(np.linalg.norm(target))
    if not norm:
        raise ConfigError(f"{b!r} - {a!r} + {c!r} is the vector of zeros, which is near nothing")
    return _best(vectors, target / norm, set(rows), count)


def _unit(table: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(norms > 0, norms, 1.0)


def _best(vectors: Vectors, target: np.ndarray, without: set[int], count: int):
    cosines = _unit(vectors.table) @ target
    order = [int(i) for i in np.argsort(-cosines, kind="stable") if int(i) not in without]
    return [(vectors.words[i], float(cosines[i])) for i in order[:count]]


def save(path: str | PathLike, vectors: Vectors, *, header: Header = "word2vec") -> None:
    """Write vectors as text, whole or not at all.

    Raises DataError for a word that holds a space, tab or line end, or numbers that are not finite.
    """
    wrong = next((word for word in vectors.words if not word or BROKEN.search(word)), None)
    if wrong is not None:
        raise DataError(f"the word {wrong!r} is empty or holds white space; a line can't hold it")
    if not np.isfinite(vectors.table).all():
        raise DataError("the vectors hold NaN or infinity, which `load` refuses; train them again")
    size, width = vectors.table.shape
    lines = [f"{size} {width}"] if header == "word2vec" else []
    for word, row in zip(vectors.words, vectors.table.astype(np.float32), strict=True):
        lines.append(f"{word} {' '.join(str(number) for number in row)}")
    files.write(path, "\n".join(lines) + "\n")


def load(path: str | PathLike) -> Vectors:
    """Return the vectors of a text file, with or without word2vec's first line.

    Raises CheckpointError, with the line, for a file that is missing, no text, or malformed.
    """
    path = Path(path)
    raw = files.read_artifact(path, "file of word vectors", 1 << 34)
    try:
        rows = files.lines(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 at byte offset {error.start}") from error
    sizes = SIZES.fullmatch(rows[0])
    headed = sizes is not None
    words, numbers = [], []
    for number, row in enumerate(rows[headed:], start=1 + headed):
        if row.strip(" \t"):
            word, vector = _row(path, number, row)
            if numbers and len(vector) != len(numbers[0]):
                raise CheckpointError(
                    f"{path}:{number}: {len(vector)} numbers, but {len(numbers[0])} before"
                )
            words.append(word)
            numbers.append(vector)
    width = len(numbers[0]) if numbers else 0
    if sizes is not None and (len(words), width) != (int(sizes[1]), int(sizes[2])):
        raise CheckpointError(
            f"{path}:1 says {sizes[1]} words of {sizes[2]} numbers, but there are {len(words)} of "
            f"{width}; the file is damaged"
        )
    try:
        return Vectors(tuple(words), np.asarray(numbers, np.float32).reshape(len(words), -1))
    except DataError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _row(path: Path, number: int, row: str) -> tuple[str, np.ndarray]:
    word, *rest = row.rstrip(" \t").split(" ")
    if word and rest and all(map(NUMBER.fullmatch, rest)):
        with np.errstate(over="ignore"):
            vector = np.asarray([float(x) for x in rest], np.float32)
        if np.isfinite(vector).all():
            return word, vector
    raise CheckpointError(f"{path}:{number}: {row[:60]!r} is no word and its finite numbers")


def initial(
    params: Mapping[str, Any],
    vectors: Vectors,
    pieces: Sequence[str],
    *,
    spread: Literal["table", "own"] = "table",
) -> tuple[dict[str, Any], int]:
    """Return (params, rows set): a model's params whose token table begins with word vectors.

    pieces: the text of each token id; stripped pieces that have a vector get it, all others keep
    their row. spread: "table" scales the vectors to the standard deviation of the table, "own"
    leaves them. Raises ConfigError where the widths differ, no piece has a vector, or the vectors
    have no spread to scale.
    """
    flat = tree.flatten(params)
    table, index = flat[TABLE], vectors.index
    if table.shape[1] != vectors.table.shape[1]:
        raise ConfigError(
            f"vectors of {vectors.table.shape[1]} numbers don't fit d_model={table.shape[1]}"
        )
    texts = [piece.strip(" ") for piece in pieces]
    pairs = [(i, index[text]) for i, text in enumerate(texts) if text in index]
    pairs = [(i, row) for i, row in pairs if i < table.shape[0]]
    if not pairs:
        raise ConfigError(f"none of {len(pieces)} pieces has a vector; is this its vocabulary?")
    ids, rows = (list(side) for side in zip(*pairs, strict=True))
    chosen = vectors.table[rows]
    if spread == "table":
        own = float(chosen.std())
        if not own:
            raise ConfigError("all numbers of the vectors are the same; take spread='own'")
        chosen = chosen * (float(jnp.std(table)) / own)
    changed = jnp.asarray(table).at[jnp.asarray(ids)].set(chosen.astype(table.dtype))
    return tree.unflatten({**flat, TABLE: changed}), len(ids)
