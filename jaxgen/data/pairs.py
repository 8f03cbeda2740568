"""Rows of several (source, target) pairs side by side, for an encoder and a decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.bins import pack, swapped
from jaxgen.data.pack import Batch
from jaxgen.data.rows import AS_IT_LIES
from jaxgen.data.shard import TokenShard
from jaxgen.errors import DataError


@dataclass(frozen=True, eq=False)
class PairRows:
    """Rows of whole pairs; a shard of pairs holds sources and targets in turn.

    widths: tokens of a row for the encoder and for the decoder. start: the id that the decoder
    begins with; eos ends what had to be cut. order, ends: as `bins.pack` returns them. cut: pairs
    of which a side was longer than its row.
    """

    shard: TokenShard
    widths: tuple[int, int]
    seed: int
    start: int
    bos: int | None
    eos: int
    order: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    lengths: np.ndarray = field(repr=False)  # [2, pairs] of source and target in a row
    cut: int

    @property
    def name(self) -> str:
        """What decides the rows, but for the shard."""
        return f"pairs {self.widths[0]} {self.widths[1]} {self.start}"

    @property
    def count(self) -> int:
        """Rows that hold every pair once."""
        return len(self.ends) - 1

    def notes(self) -> list[str]:
        """Return what a reader should know of pairs that are longer than a row."""
        pairs = self.shard.documents // 2
        line = f"{self.cut:,} of {pairs:,} pairs are longer than a row and are cut to it"
        return [line] if self.cut else []

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return the batch of the rows.

        source, source_segments, source_positions: [B, S] int32; tokens, targets, segments,
        positions: [B, T] int32; weights: [B, T] float32. Segment n of a row's tokens belongs to
        segment n of its source; 0 is padding. tokens begin with `start`, and are the targets one
        place later. index: [B] int64, the token of the shard at which the row's first pair begins.
        """
        pairs, places = pairs_of(self, rows, epochs)
        size, lengths = len(rows), self.lengths[:, pairs]
        offsets = self.shard.offsets.astype(np.int64)
        source = lay(places, lengths[0], (size, self.widths[0]))
        target = lay(places, lengths[1], (size, self.widths[1]))
        read = source.fill(
            self._ids(offsets[2 * pairs], lengths[0], offsets[2 * pairs + 1], source)
        )
        # A target without its bos: `start` stands in its place.
        begins = offsets[2 * pairs + 1] + (self.bos is not None)
        ids = target.fill(self._ids(begins, lengths[1], offsets[2 * pairs + 2], target))
        tokens = np.roll(ids, 1, axis=1)
        tokens = np.where(target.positions == 0, self.start, tokens)
        return {
            "source": read,
            "source_segments": source.segments,
            "source_positions": source.positions,
            "tokens": np.where(target.segments > 0, tokens, 0).astype(np.int32),
            "targets": ids,
            "weights": (target.segments > 0).astype(np.float32),
            "segments": target.segments,
            "positions": target.positions,
            "index": firsts(places, offsets[2 * pairs], size),
        }

    def _ids(
        self, begins: np.ndarray, lengths: np.ndarray, ends: np.ndarray, layout: Laid
    ) -> np.ndarray:
        ids = self.shard.tokens[begins[layout.owner] + layout.inner].astype(np.int32)
        cut = (begins + lengths < ends)[layout.owner] & (layout.inner == lengths[layout.owner] - 1)
        return np.where(cut, self.eos, ids)


@dataclass(frozen=True, eq=False)
class Laid:
    """Where the tokens of several texts lie in rows: owner and inner name each token's text and
    place in it, at (rows, columns); segments and positions [B, width] int32 are as in a batch."""

    owner: np.ndarray
    inner: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    segments: np.ndarray
    positions: np.ndarray

    def fill(self, ids: np.ndarray) -> np.ndarray:
        """Return the [B, width] int32 rows of these ids, 0 elsewhere."""
        full = np.zeros(self.segments.shape, np.int32)
        full[self.rows, self.columns] = ids
        return full

    def batch(self, tokens: np.ndarray, targets: np.ndarray, learnt: np.ndarray) -> Batch:
        """Return tokens, targets, weights, segments and positions [B, width]."""
        weights = np.zeros(self.segments.shape, np.float32)
        weights[self.rows, self.columns] = learnt
        return {
            "tokens": self.fill(tokens),
            "targets": self.fill(targets),
            "weights": weights,
            "segments": self.segments,
            "positions": self.positions,
        }


def firsts(places: np.ndarray, begins: np.ndarray, size: int) -> np.ndarray:
    """Return where in a shard the first text of each row begins, -1 where there is none."""
    index = np.full(size, -1, np.int64)
    index[places[::-1]] = begins[::-1]  # the first of a row is written last
    return index


def lay(places: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> Laid:
    """Return texts of these lengths side by side; `places` says, ascending, the row of each."""
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    first = np.searchsorted(places, places)  # the first text of the same row
    owner = np.repeat(np.arange(len(lengths)), lengths)
    inner = np.arange(total) - before[owner]
    columns = (before - before[first])[owner] + inner if total else inner
    rows = places[owner]
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments[rows, columns] = (np.arange(len(lengths)) - first + 1)[owner]
    positions[rows, columns] = inner
    return Laid(owner, inner, rows, columns, segments, positions)


def pair_rows(
    shard: TokenShard,
    *,
    widths: tuple[int, int],
    seed: int,
    start: int,
    bos: int | None,
    eos: int,
) -> PairRows:
    """Return the rows of a shard of pairs; DataError if it holds none."""
    check_pairs(shard)
    whole = np.diff(shard.offsets.astype(np.int64))
    needed = np.stack([whole[::2], whole[1::2] - (bos is not None)])
    lengths = np.minimum(needed, np.asarray(widths)[:, None])
    order, ends = pack(lengths[0], lengths[1], widths)
    return PairRows(
        shard=shard,
        widths=widths,
        seed=seed,
        start=start,
        bos=bos,
        eos=eos,
        order=order,
        ends=ends,
        lengths=lengths,
        cut=int((needed > lengths).any(axis=0).sum()),
    )


@runtime_checkable
class Packed(Protocol):
    """Rows into which pairs of texts are packed; lengths [2, pairs], order and ends of `pack`."""

    @property
    def seed(self) -> int: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def order(self) -> np.ndarray: ...
    @property
    def ends(self) -> np.ndarray: ...


def check_pairs(shard: TokenShard) -> None:
    """Raise DataError for a shard without pairs."""
    if not shard.documents or shard.documents % 2:
        raise DataError(f"{shard.path} holds no pairs; give more text for this split")


def pairs_of(packed: Packed, rows: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (pairs, place in the batch of the row that each is in), row after row."""
    chosen, places = [], []
    for i, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
        if row < 0:
            continue
        pairs = packed.order[packed.ends[row] : packed.ends[row + 1]]
        if epoch != AS_IT_LIES:
            pairs = _swapped(packed, int(epoch))[pairs]
        chosen.append(pairs)
        places.append(np.full(len(pairs), i))
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *chosen]), np.concatenate([empty, *places])


@lru_cache(maxsize=4)
def _swapped(rows: Packed, epoch: int) -> np.ndarray:
    return swapped(rows.lengths[0], rows.lengths[1], rows.seed, epoch)
