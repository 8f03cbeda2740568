"""Characters and UTF-8 as the rules tell them apart: classes of characters, and nodes of bytes."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxgen.safety.expressions import Class, Nfa
from jaxgen.safety.folding import FOLDS, Fold, folds_to_itself, in_word, is_word, readings

SIZE = sys.maxunicode + 1
REPLACEMENT = 0xFFFD  # what bytes that are no character become
INVALID = -1
# Kinds of characters: those that fold to others are looked at one by one; of the rest one is as the
# next. PLAIN + 1 are of words, + 2 blank, + 4 digits, + 8 of words whose ends show.
EACH, HANGUL, OTHER, PLAIN = range(4)
_JAMO = (0x1100, 0x11FF)


class Alphabet(NamedTuple):
    """Classes of characters, and how bytes come to them.

    of: [U] the class of each code point. tree: [N, 256] what a byte does at each node of UTF-8: a
    class, which ends a character, SIZE + the next node, or INVALID. Node 0 is between characters.
    """

    of: np.ndarray
    tree: np.ndarray

    def walk(self, spelling: bytes, node: int) -> tuple[tuple[int, ...], int]:
        """Return (the classes that the bytes complete, the node behind them)."""
        classes: list[int] = []
        wrong = int(self.of[REPLACEMENT])
        for byte in spelling:
            value = int(self.tree[node, byte])
            if value == INVALID and node:  # as Python's decoder: what was begun is no character
                classes.append(wrong)
                node, value = 0, int(self.tree[0, byte])
            if value == INVALID:
                classes.append(wrong)
            elif value >= SIZE:
                node = value - SIZE
            else:
                classes.append(value)
                node = 0
        return tuple(classes), node

    def completions(self) -> list[frozenset[int]]:
        """Return the classes that each node may come to."""
        known: dict[int, frozenset[int]] = {}

        def reached(node: int) -> frozenset[int]:
            if node not in known:
                values = {int(one) for one in self.tree[node] if one != INVALID}
                inner = (reached(one - SIZE) for one in values if one >= SIZE)
                known[node] = frozenset(one for one in values if one < SIZE).union(*inner)
            return known[node]

        return [reached(node) for node in range(len(self.tree))]


def classes_of(nfa: Nfa) -> tuple[np.ndarray, list[str]]:
    """Return (the class [U] of each code point, a character of each), which rules tell apart."""
    tests = list(dict.fromkeys(test for edges in nfa.reads for test, _ in edges))
    folds: tuple[Fold, ...] = tuple(fold for fold in FOLDS if fold in nfa.fold)
    one = {test.ranges[0][0]: i for i, test in enumerate(tests) if _is_one(test)}
    rest = [(i, test) for i, test in enumerate(tests) if not _is_one(test)]
    symbols: dict[str, int] = {}
    kinds: dict[tuple, int] = {}

    def symbol_class(symbol: str) -> int:
        known = symbols.get(symbol)
        if known is None:
            passed = frozenset(i for i, test in rest if test.holds(symbol))
            passed |= {one[ord(symbol)]} if ord(symbol) in one else frozenset()
            known = symbols[symbol] = kinds.setdefault((passed, in_word(symbol)), len(kinds))
        return known

    classes: dict[tuple, int] = {}
    members: list[str] = []

    def class_of(point: int) -> int:
        character = chr(point)
        key = tuple(
            frozenset(tuple(map(symbol_class, reading)) for reading in readings(character, fold))
            for fold in folds
        )
        number = classes.setdefault(key, len(classes))
        if number == len(members):
            members.append(character)
        return number

    of = np.zeros(SIZE, np.uint16)
    kind, bounds = _kinds(), _bounds(tests)
    alone = kind == EACH
    if any(low <= _JAMO[1] and high >= _JAMO[0] for low, high in _touched(tests)):
        alone = alone | (kind == HANGUL)
    for point in np.flatnonzero(alone).tolist():
        of[point] = class_of(point)
    for begin, end in pairwise(bounds):
        part = np.where(alone[begin:end], EACH, kind[begin:end])
        for uniform in range(HANGUL, PLAIN + 16):
            if len(where := np.flatnonzero(part == uniform)):
                of[begin + where] = class_of(begin + int(where[0]))
    return of, members


def _is_one(test: Class) -> bool:
    single = len(test.ranges) == 1 and test.ranges[0][0] == test.ranges[0][1]
    return single and not (test.categories or test.negated or test.caseless)


def _touched(tests: Sequence[Class]) -> list[tuple[int, int]]:
    return [pair for test in tests for pair in test.ranges]


def _bounds(tests: Sequence[Class]) -> list[int]:
    edges = {edge for low, high in _touched(tests) for edge in (low, high + 1)}
    return sorted({0, SIZE} | {edge for edge in edges if 0 < edge < SIZE})


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    kinds = np.full(SIZE, OTHER, np.uint8)
    ideographs = np.zeros(SIZE, bool)
    for low, high in ((0x3400, 0x9FFF), (0x17000, 0x18CFF), (0x20000, 0x2F7FF), (0x30000, 0x3FFFF)):
        ideographs[low : high + 1] = True
    for point in range(SIZE):
        character = chr(point)
        if unicodedata.category(character) in ("Cn", "Co", "Cs"):
            continue
        if ideographs[point] or folds_to_itself(character):
            kinds[point] = PLAIN + is_word(character) + 2 * character.isspace()
            kinds[point] += 4 * character.isdecimal() + 8 * in_word(character)
        else:
            kinds[point] = EACH
    kinds[0xAC00:0xD7A4] = HANGUL
    return kinds


def make(of: np.ndarray) -> Alphabet:
    """Return the alphabet of the class [U] of each code point; equal rows share a node."""
    root = np.full(256, INVALID, np.int32)
    tree = [root[None]]

    def nodes(children: np.ndarray) -> np.ndarray:
        """Return what leads to the nodes [M] of what their 64 bytes lead to [M, 64]."""
        first, numbers = SIZE + sum(map(len, tree)), {}
        which = [numbers.setdefault(row.tobytes(), len(numbers)) for row in children]
        rows = np.full((len(numbers), 256), INVALID, np.int32)
        rows[:, 0x80:0xC0] = np.frombuffer(b"".join(numbers), np.int32).reshape(-1, 64)
        tree.append(rows)
        return first + np.asarray(which, np.int32)

    pages = of.astype(np.int32).reshape(-1, 64)
    pages[[0, 1, *range(0xD800 // 64, 0xE000 // 64)]] = pages[2]  # ASCII and surrogates: no node
    last = nodes(pages)
    inner = last.reshape(-1, 64).copy()
    inner[0, :32] = inner[0xD, 32:] = INVALID  # what has a shorter spelling, and surrogates
    inner = nodes(inner)
    outer = np.full(5 * 64, INVALID, np.int32)
    outer[16 : len(inner)] = inner[16:]
    root[:0x80] = of[:0x80]
    root[0xC2:0xE0], root[0xE0:0xF0] = last[2:32], inner[:16]
    root[0xF0:0xF5] = nodes(outer.reshape(5, 64))
    return Alphabet(of, np.concatenate(tree))
