"""BM25: every posting holds its score, so that a query is a sum of a few lists (BM25S, Lu 2024)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgen.knowledge import folder

K1, B = 1.5, 0.75  # how fast repeated words saturate; how much long texts are held back
TOKEN = re.compile(r"\b\w\w+\b")  # the words of scikit-learn and bm25s: two characters or more
BLOCK = 1 << 22  # words that are counted at once


class Postings(NamedTuple):
    """An inverted index.

    terms: the words in order of their UTF-8 bytes, one after the other, term i being
    terms[term_ends[i - 1]:term_ends[i]]. ends: where its postings end. passages and scores: of
    every posting, those of a term in order of passage. idf: of each term.
    """

    terms: np.ndarray
    term_ends: np.ndarray
    ends: np.ndarray
    passages: np.ndarray
    scores: np.ndarray
    idf: np.ndarray


def words(text: str) -> list[str]:
    """Return the words of a text as they are searched: small letters, two characters or more."""
    return TOKEN.findall(text.lower())


def build(texts: Iterable[str]) -> Postings:
    """Return the inverted index of texts, in the order of their numbers; each is read once.

    The scores are Lucene's, equal to those of bm25s.
    """
    numbers: dict[str, int] = {}
    lengths, parts, block = list[int](), list[np.ndarray](), list[np.ndarray]()
    held, first = 0, 0

    def count() -> None:
        ids = np.concatenate(block) if block else np.zeros(0, np.int64)
        owners = np.repeat(np.arange(first, len(lengths)), lengths[first:])
        keys, times = np.unique((owners << 32) | ids, return_counts=True)
        rows = np.empty(len(keys), [("term", np.int32), ("passage", np.int32), ("times", "f4")])
        rows["term"], rows["passage"], rows["times"] = keys & 0xFFFFFFFF, keys >> 32, times
        parts.append(rows)

    for text in texts:
        row = np.fromiter((numbers.setdefault(w, len(numbers)) for w in words(text)), np.int64)
        lengths.append(len(row))
        block.append(row)
        held += len(row)
        if held >= BLOCK:
            count()
            block, held, first = [], 0, len(lengths)
    count()
    return _postings(numbers, np.asarray(lengths), np.concatenate(parts))


def _postings(numbers: dict[str, int], lengths: np.ndarray, rows: np.ndarray) -> Postings:
    spelled = sorted((word.encode(), number) for word, number in numbers.items())
    rank = np.empty(len(spelled), np.int32)
    rank[[number for _, number in spelled]] = np.arange(len(spelled), dtype=np.int32)
    term = rank[rows["term"]]
    order = np.argsort(term, kind="stable")
    passages, times = rows["passage"][order], rows["times"][order]
    frequency = np.bincount(term, minlength=len(spelled))
    odds = (len(lengths) - frequency + 0.5) / (frequency + 0.5)
    idf = np.log1p(odds).astype(np.float32)
    longer = (lengths / max(float(lengths.mean()), 1e-9) if len(lengths) else lengths).astype("f8")
    weight = times / (times + K1 * (1 - B + B * longer[passages]))
    terms, term_ends = folder.join([word for word, _ in spelled])
    return Postings(
        terms=terms,
        term_ends=term_ends,
        ends=np.cumsum(frequency, dtype=np.int64),
        passages=passages,
        scores=(np.repeat(idf, frequency) * weight).astype(np.float32),
        idf=idf,
    )


def find(postings: Postings, word: str) -> int | None:
    """Return the number of a word, None for one that no text holds."""
    wanted, low, high = word.encode(), 0, len(postings.term_ends)
    while low < high:
        middle = (low + high) // 2
        term = folder.part(postings.terms, postings.term_ends, middle)
        if term == wanted:
            return middle
        low, high = (middle + 1, high) if term < wanted else (low, middle)
    return None


def scores(postings: Postings, query: str, count: int) -> Float[np.ndarray, "N"]:
    """Return the score of each of `count` texts; a word that the query repeats counts again."""
    total = np.zeros(count, np.float32)
    for word in words(query):
        if (term := find(postings, word)) is not None:
            rows = slice(int(postings.ends[term - 1]) if term else 0, int(postings.ends[term]))
            total[postings.passages[rows]] += postings.scores[rows]
    return total


def coverage(postings: Postings, query: str, text: str) -> float:
    """Return the share of a query's words that a text holds, each weighed by its idf, 0 to 1.

    A word of no text weighs as one of a single text.
    """
    rarest = float(postings.idf.max(initial=0.0)) or 1.0
    held, part, whole = set(words(text)), 0.0, 0.0
    for word in set(words(query)):
        term = find(postings, word)
        weight = rarest if term is None else float(postings.idf[term])
        part, whole = part + weight * (word in held), whole + weight
    return part / whole if whole else 0.0


def top(scored: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """Return the numbers of the best texts that score above 0, the best first, ties in order."""
    scored = np.asarray(scored)
    count = min(count, len(scored))
    if count < 1:
        return []
    least = np.partition(scored, len(scored) - count)[len(scored) - count]
    chosen = np.flatnonzero(scored >= max(least, np.finfo(np.float32).tiny))
    return chosen[np.argsort(-scored[chosen], kind="stable")][:count].tolist()
