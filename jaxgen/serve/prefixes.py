"""Which beginnings of texts the cache holds: blocks of tokens in a tree, the oldest make room.

Only whole blocks are shared. A block is known by the tokens of it and of all blocks before it, and
by whose weights have read them (`owner`), so that equal beginnings are found and no others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass
class _Block:
    key: tuple[Hashable, tuple[int, ...]]  # (the block before it, or the owner; its tokens)
    before: int | None
    after: int = 0  # blocks that go on from it
    used: int = 0


class Prefixes:
    """The index of a pool of `count` blocks of `size` tokens."""

    def __init__(self, count: int, size: int) -> None:
        self.size, self._blocks = size, dict[int, _Block]()
        self._at, self._free = dict[tuple[Hashable, tuple[int, ...]], int](), list(range(count))
        self._clock = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, tokens: Sequence[int], owner: Hashable = None) -> list[int]:
        """Return the places of the blocks that a text begins with, as many as are known."""
        self._clock += 1
        path: list[int] = []
        for number in range(len(tokens) // self.size):
            place = self._at.get(self._key(tokens, number, owner, path))
            if place is None:
                break
            self._blocks[place].used = self._clock
            path.append(place)
        return path

    def add(self, tokens: Sequence[int], owner: Hashable = None) -> tuple[list[int], list[int]]:
        """Return (first token, place) of the blocks of a text that are new; now they are known.

        The least recently used blocks make room; where there is none but this text's own, its end
        is left out.
        """
        path = self.find(tokens, owner)
        known = len(path)
        for number in range(known, len(tokens) // self.size):
            place = self._room()
            if place is None:
                break
            key, before = self._key(tokens, number, owner, path), path[-1] if path else None
            if before is not None:
                self._blocks[before].after += 1
            self._blocks[place], self._at[key] = _Block(key, before, used=self._clock), place
            path.append(place)
        return [number * self.size for number in range(known, len(path))], path[known:]

    def _key(self, tokens, number: int, owner: Hashable, path: list[int]):
        before: Hashable = path[number - 1] if number else ("owner", owner)
        return before, tuple(tokens[number * self.size : (number + 1) * self.size])

    def _room(self) -> int | None:
        if self._free:
            return self._free.pop()
        ends = [
            (block.used, place)
            for place, block in self._blocks.items()
            if not block.after and block.used < self._clock
        ]
        if not ends:
            return None
        _, place = min(ends)
        block = self._blocks.pop(place)
        del self._at[block.key]
        if block.before is not None:
            self._blocks[block.before].after -= 1
        return place
