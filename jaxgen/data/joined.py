"""An array whose numbers lie in several files, of which those that are asked for are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxgen import files
from jaxgen.data.ranges import places_of


class JoinedArray:
    """A vector of the numbers of several shards, one shard after another.

    opening: functions that open a shard each; counts: the numbers that each has; kind: their dtype.
    Indexing is numpy's, by a slice or an array of places; np.asarray reads all.
    """

    def __init__(
        self, opening: Sequence[Callable[[], Any]], counts: Sequence[int], kind: str
    ) -> None:
        self.dtype, self._opening = np.dtype(kind), opening
        self._begins = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
        self._open: dict[int, Any] = {}
        self._checked = 0

    def __len__(self) -> int:
        return int(self._begins[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(count,)."""
        return (len(self),)

    def open_all(self) -> None:
        """Open every part, which verifies it where it is to be."""
        parts = files.each(lambda open_part: open_part(), self._opening)
        self._open = dict(enumerate(parts))

    def check_next(self) -> None:
        """Raise DataError if a part has changed since it was opened; another part each time."""
        if self._open:
            self._checked = (self._checked + 1) % len(self._open)
            list(self._open.values())[self._checked].check_unchanged()

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            begin, end, stride = key.indices(len(self))
            if stride != 1:
                return self[np.arange(begin, end, stride)]
            first, last = self._part(begin), self._part(max(end - 1, begin))
            parts = [
                self._shard(i).tokens[max(begin - at, 0) : max(end - at, 0)]
                for i, at in zip(range(first, last + 1), self._begins[first:], strict=False)
            ]
            return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
        places = places_of(key, len(self))
        owners = self._part(places.ravel())
        together = np.argsort(owners, kind="stable")
        parts, first = np.unique(owners[together], return_index=True)
        numbers = np.empty(places.size, self.dtype)
        for i, own in zip(parts, np.split(together, first[1:]), strict=False):
            numbers[own] = self._shard(int(i)).tokens[places.ravel()[own] - self._begins[i]]
        return numbers.reshape(places.shape)[() if places.ndim == 0 else ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def _part(self, place: Any) -> Any:
        # The last part that begins there: those before it are empty.
        return np.searchsorted(self._begins[:-1], place, side="right") - 1

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = self._opening[number]()
        return self._open[number]
