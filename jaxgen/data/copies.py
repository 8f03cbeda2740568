"""Copies of training text: where a token sequence stands verbatim, or nearly, in token shards.

A suffix array of the shards answers exactly, for copies of any length: its order is found by prefix
doubling (Larsson and Sadakane 2007), and each look-up is a binary search.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Integer

from jaxgen.data.shard import TokenShard
from jaxgen.errors import ConfigError, DataError

LARGEST = 2**31 - 1  # tokens that an index can hold; its suffixes are int32
BORDER = 0  # between documents; ids are held one larger, so that no copy crosses it


@dataclass(frozen=True)
class Copy:
    """Tokens of a query that stand verbatim in a document.

    begin: place of the first in the query; document: its number, counted over all shards; offset:
    place of the copy in that document; count: how often these tokens occur.
    """

    begin: int
    length: int
    document: int
    offset: int
    count: int


@dataclass(frozen=True)
class Passage:
    """A part of a document that shares n-grams with a query.

    shared: part of the query's distinct n-grams that it holds, 0 to 1.
    """

    document: int
    offset: int
    length: int
    shared: float


@dataclass(frozen=True, eq=False)
class CopyIndex:
    """Documents and the order of all their suffixes; `index_copies` makes it.

    text: ids plus 1 as big-endian bytes, whose order is that of the tokens; width: bytes of each.
    suffixes: [N] places in order of what follows them; starts: [documents + 1], and of the end.
    """

    text: bytes
    width: int
    suffixes: Int[np.ndarray, "N"]
    starts: Int[np.ndarray, "R"]

    @property
    def documents(self) -> int:
        """Return how many documents there are."""
        return len(self.starts) - 1

    def count(self, tokens: Integer[np.ndarray, "T"] | Sequence[int]) -> int:
        """Return how often a sequence stands in the documents; copies may overlap."""
        begin, end = self._range(self._bytes(tokens))
        return end - begin

    def copies(
        self, tokens: Integer[np.ndarray, "T"] | Sequence[int], *, shortest: int = 8
    ) -> list[Copy]:
        """Return the copies of `shortest` tokens or more that lie in no longer one, in order.

        Each is a longest one: the token before it, or after it, makes it a sequence that no
        document has. Of several occurrences the first in suffix order is named.
        """
        if shortest < 1:
            raise ConfigError(f"shortest={shortest} must be at least 1")
        query, width, copies, reached = self._bytes(tokens), self.width, [], 0
        for begin in range(len(query) // width):
            length = self._longest_from(query, begin * width)
            if begin + length <= reached:  # it lies in the copy before it
                continue
            reached = begin + length
            if length >= shortest:
                part = query[begin * width : reached * width]
                first, end = self._range(part)
                document, offset = self._place(int(self.suffixes[first]))
                copies.append(Copy(begin, length, document, offset, end - first))
        return copies

    def longest(self, tokens: Integer[np.ndarray, "T"] | Sequence[int]) -> Copy | None:
        """Return the longest verbatim copy, the first of equals; None if no token occurs."""
        return max(self.copies(tokens, shortest=1), key=lambda copy: copy.length, default=None)

    def nearest(
        self,
        tokens: Integer[np.ndarray, "T"] | Sequence[int],
        *,
        width: int = 4,
        number: int = 3,
    ) -> list[Passage]:
        """Return the passages that share most n-grams of `width` tokens with a query, best first.

        A passage is as long as the query at most, and overlaps none that is better. Copies with
        words changed, left out or put in are found as well as verbatim ones.
        """
        for name, value in (("width", width), ("number", number)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        places, grams, distinct = self._shared(self._bytes(tokens), width)
        # No window reaches from one document into the next if there is room for one between them.
        apart = (np.searchsorted(self.starts, places, side="right") - 1) * len(tokens)
        passages = []
        while len(places) and len(passages) < number:
            first, last, shared = _best_window(places + apart, grams, len(tokens) - width)
            begin, end = int(places[first]), int(places[last - 1]) + width
            document, offset = self._place(begin)
            passages.append(Passage(document, offset, end - begin, shared / distinct))
            other = (places + width <= begin) | (places >= end)
            places, grams, apart = places[other], grams[other], apart[other]
        return passages

    def tokens_of(self, document: int, offset: int, length: int) -> Int[np.ndarray, "T"]:
        """Return the ids of a part of a document."""
        begin = int(self.starts[document]) + offset
        end = min(begin + length, int(self.starts[document + 1]) - 1)
        return _ids(self.text, self.width)[begin:end].astype(np.int64) - 1

    def _shared(self, query: bytes, width: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return places in the documents of a query's n-grams, which each is, and how many."""
        step, size = self.width, self.width * width
        grams = dict.fromkeys(
            query[begin : begin + size] for begin in range(0, len(query) - size + 1, step)
        )
        where = [self.suffixes[slice(*self._range(gram))] for gram in grams]
        if not where:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), 1
        places = np.concatenate(where).astype(np.int64)
        numbers = np.repeat(np.arange(len(where)), [len(one) for one in where])
        order = np.argsort(places, kind="stable")
        return places[order], numbers[order], len(grams)

    def _bytes(self, tokens: Integer[np.ndarray, "T"] | Sequence[int]) -> bytes:
        ids = np.asarray(tokens, np.int64)
        if ids.ndim != 1 or (ids.size and ids.min() < 0):
            raise ConfigError(f"tokens of shape {list(ids.shape)} must be ids [T], 0 or more")
        most = 256**self.width - 2
        # The largest is no document's, so an id that is too large for the width matches nothing.
        return (np.minimum(ids, most) + 1).astype(f">u{self.width}").tobytes()

    def _range(self, part: bytes) -> tuple[int, int]:
        """Return the first suffix, and the one after the last, that begins with a part."""
        text, width, size = self.text, self.width, len(part)

        def opening(place: np.integer) -> bytes:
            begin = int(place) * width
            return text[begin : begin + size]

        first = bisect_left(self.suffixes, part, key=opening)
        return first, bisect_right(self.suffixes, part, lo=first, key=opening)

    def _longest_from(self, query: bytes, begin: int) -> int:
        """Return how many tokens from a byte of the query on are some document's."""
        size, longest = 32 * self.width, 0
        while True:
            part = query[begin : begin + size]
            near, _ = self._range(part)
            for place in self.suffixes[max(near - 1, 0) : near + 1].tolist():
                longest = max(longest, _common(part, self.text, place * self.width, self.width))
            if longest * self.width < len(part) or begin + size >= len(query):
                return longest
            size *= 4  # seldom: few copies are long

    def _place(self, position: int) -> tuple[int, int]:
        document = int(np.searchsorted(self.starts, position, side="right")) - 1
        return document, position - int(self.starts[document])


def index_copies(
    shards: Sequence[TokenShard] | Sequence[Integer[np.ndarray, "T"]],
) -> CopyIndex:
    """Return the index of the documents of shards, or of documents [T] themselves, in memory.

    It takes about 10 bytes for each token, and a third of a second for each million. Raises
    DataError for shards without a token, or with more than an index can hold.
    """
    parts = [part for shard in shards for part in _documents(shard)]
    largest = max((int(part.max()) for part in parts if part.size), default=-1)
    count = sum(part.size + 1 for part in parts)
    if largest < 0 or count > LARGEST:
        raise DataError(
            f"the documents hold {count - len(parts):,} tokens; an index takes 1 to {LARGEST:,}: "
            f"give other shards, or fewer"
        )
    width = 2 if largest + 3 < 1 << 16 else 4
    text = np.zeros(count, f">u{width}")  # zeros stay at the borders
    starts = np.concatenate([[0], np.cumsum([part.size + 1 for part in parts])])
    for part, start in zip(parts, starts[:-1], strict=True):
        text[start : start + part.size] = part.astype(np.int64) + 1
    return CopyIndex(text.tobytes(), width, _suffix_array(text), starts)


def _documents(shard: TokenShard | np.ndarray) -> list[np.ndarray]:
    if isinstance(shard, TokenShard):
        ends = shard.offsets.astype(np.int64)
        return np.split(shard.all_tokens, ends[1:-1])
    return [np.asarray(shard)]


def _suffix_array(text: np.ndarray) -> np.ndarray:
    """Return the places of a text in order of their suffixes, each up to the end of its document.

    Only groups of suffixes that are equal so far are sorted again, by twice as many tokens.
    """
    border = text == BORDER  # each one of its own, so that what begins with it is in order
    rank = np.where(border, np.cumsum(border), text.astype(np.int64) + np.count_nonzero(border))
    order = np.argsort(rank, kind="stable").astype(np.int32)
    ordered, slots, depth = rank[order], np.arange(len(text)), 1
    first = _first_slots(slots, ordered[1:] != ordered[:-1])
    rank[order] = first
    while (slots := _undecided(slots, first)).size:
        places = order[slots]
        pairs = rank[places] * len(text) + rank[places + depth]
        by = np.argsort(pairs, kind="stable")
        places, pairs = places[by], pairs[by]
        order[slots] = places
        first = _first_slots(slots, pairs[1:] != pairs[:-1])
        rank[places] = first
        depth *= 2
    return order


def _first_slots(slots: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """Return the first slot of each slot's group; changes: [N - 1] where another group begins."""
    begins = np.concatenate([[True], changes])
    return slots[np.maximum.accumulate(np.where(begins, np.arange(len(slots)), 0))]


def _undecided(slots: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the slots whose group has others."""
    alone = np.concatenate([first[1:] != first[:-1], [True]]) & (first == slots)
    return slots[~alone]


def _best_window(places: np.ndarray, grams: np.ndarray, span: int) -> tuple[int, int, int]:
    """Return (first, last, shared) of the window places[first:last] with most distinct n-grams.

    Its places are `span` apart at most. Every window lies in two neighbouring blocks, whose n-grams
    bound its own, so blocks that hold few are not looked at.
    """
    block, kinds = places // (span + 1), int(grams.max()) + 1
    held = np.unique(np.concatenate([block, block - 1]) * kinds + np.tile(grams, 2)) // kinds
    blocks, bounds = np.unique(held, return_counts=True)
    best = (0, 0, 0)
    for number in np.argsort(-bounds, kind="stable"):
        if bounds[number] <= best[2]:
            break
        first, last = np.searchsorted(block, [blocks[number], blocks[number] + 2]).tolist()
        near, seen, end = places[first:last], dict[int, int](), 0
        until = np.searchsorted(near, near + span, side="right").tolist()
        own = grams[first:last].tolist()
        for begin in range(len(near)):
            for gram in own[end : until[begin]]:
                seen[gram] = seen.get(gram, 0) + 1
            end = until[begin]
            if len(seen) > best[2]:
                best = (first + begin, first + end, len(seen))
            seen[own[begin]] -= 1
            if not seen[own[begin]]:
                del seen[own[begin]]
    return best


def _common(query: bytes, text: bytes, begin: int, width: int) -> int:
    """Return how many tokens a query and the text from a byte on have in common."""
    part = text[begin : begin + len(query)]
    a, b = _ids(query[: len(part)], width), _ids(part, width)
    different = np.flatnonzero(a != b)
    return int(different[0]) if different.size else len(a)


def _ids(raw: bytes, width: int) -> np.ndarray:
    return np.frombuffer(raw, f">u{width}")
