"""What an epoch consists of: rows that a batch is made of, by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.pack import Batch, check_room, cut, rows_per_epoch
from jaxgen.data.random import hash_seed
from jaxgen.data.shard import TokenShard

AS_IT_LIES = -1  # the epoch of a split that is read once, in order


@runtime_checkable
class Rows(Protocol):
    """The rows of a shard, made for one objective; frozen, and small enough for a worker.

    count: rows in an epoch. name: what must be the same for a position to mean the same.
    """

    @property
    def shard(self) -> TokenShard: ...
    @property
    def count(self) -> int: ...
    @property
    def name(self) -> str: ...
    def batch(self, rows: np.ndarray, epochs: np.ndarray, keys: np.ndarray) -> Batch:
        """Return the batch of rows [B] (-1: padding) of epochs [B], with random `keys` [B]."""
        ...


@runtime_checkable
class Maker(Protocol):
    """An objective: makes the rows of a shard; `context` is the longest row."""

    def __call__(self, shard: TokenShard, *, context: int, seed: int, ordered: bool) -> Rows: ...


@dataclass(frozen=True)
class Windows:
    """Where the rows of `width` tokens of an epoch begin.

    Each epoch begins its rows at another, random token, so that a text is not always cut at the
    same places.
    """

    shard: TokenShard
    width: int
    seed: int

    def offset(self, epoch: int) -> int:
        """Return the token at which the rows of an epoch begin."""
        if epoch == AS_IT_LIES:
            return 0
        return hash_seed(self.seed, epoch + 1) % len(self.shard.tokens)

    def offsets(self, epochs: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
        """Return `offset` of each epoch."""
        starts = {epoch: self.offset(int(epoch)) for epoch in np.unique(epochs)}
        return np.asarray([starts[epoch] for epoch in epochs], np.int64)


@dataclass(frozen=True)
class NextTokens:
    """Rows of the causal objective: each token predicts the one after it."""

    windows: Windows
    name: str = "causal"

    @property
    def shard(self) -> TokenShard:
        """The tokens."""
        return self.windows.shard

    @property
    def count(self) -> int:
        """Rows that hold every token once."""
        return rows_per_epoch(self.shard, self.windows.width)

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return `pack.cut` of the rows."""
        count, shift = len(self.shard.tokens), self.windows.offsets(epochs)
        starts = shift + rows * self.windows.width
        # The row that ends an epoch stops where the first began, so no token counts twice.
        ends = np.where(epochs == AS_IT_LIES, count, shift + count + 1)
        # Rows of padding begin nowhere, and weigh nothing.
        starts, ends = np.where(rows < 0, 0, starts), np.where(rows < 0, 0, ends)
        batch = cut(self.shard, starts, ends, self.windows.width)
        return batch | {"index": np.where(batch["index"] < 0, -1, starts % count)}


@dataclass(frozen=True)
class Overlapping:
    """Rows of the causal objective that begin `stride` tokens after another, each token once.

    A row counts its last `stride` targets, the first one all: each has at least width - stride
    tokens before it, where there are so many.
    """

    shard: TokenShard
    width: int
    stride: int
    name: str = "causal, overlapping"

    @property
    def count(self) -> int:
        """Rows that predict every token once."""
        return 1 + max(-(-(len(self.shard.tokens) - 1 - self.width) // self.stride), 0)

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return `pack.cut` of the rows."""
        ends = np.where(rows < 0, 0, len(self.shard.tokens))
        batch = cut(self.shard, np.where(rows < 0, 0, rows * self.stride), ends, self.width)
        scored = (rows > 0)[:, None] & (np.arange(self.width) < self.width - self.stride)
        return batch | {"weights": np.where(scored, np.float32(0), batch["weights"])}


def overlapping(
    shard: TokenShard, *, context: int, seed: int, ordered: bool, stride: int
) -> Overlapping:
    """Return overlapping rows, for a text that is read once; DataError for too little text."""
    check_room(shard, context, whole_row=False)
    return Overlapping(shard, context, stride)


def causal(shard: TokenShard, *, context: int, seed: int, ordered: bool) -> NextTokens:
    """Return the rows of the causal objective; DataError for too little text.

    ordered: the split is read once, in order; then less than one whole row will do.
    """
    check_room(shard, context, whole_row=not ordered)
    return NextTokens(Windows(shard, context, seed))
