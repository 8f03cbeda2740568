"""Rows of one text each, whose class is to be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.pack import Batch
from jaxgen.data.pairs import lay
from jaxgen.data.shard import TokenShard
from jaxgen.errors import DataError


@dataclass(frozen=True, eq=False)
class ClassRows:
    """One text a row, its end cut off at `width` tokens; every second document is a class."""

    shard: TokenShard
    width: int
    name: str = "classes"

    @property
    def count(self) -> int:
        """Texts."""
        return self.shard.documents // 2

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
        changed: Mapping[int, list[int]] | None = None,
    ) -> Batch:
        """Return tokens, segments, positions [B, T]; targets [B, 1], the class; weights [B, 1].

        changed: by place in the batch, the ids that a text has instead of its own.
        """
        real = rows >= 0
        texts = 2 * rows[real]
        offsets = self.shard.offsets.astype(np.int64)
        whole = offsets[texts + 1] - offsets[texts]
        new = {n: np.array(changed[at]) for n, at in enumerate(np.flatnonzero(real).tolist())
               if changed and at in changed}  # fmt: skip
        whole[list(new)] = [len(ids) for ids in new.values()]
        lengths = np.minimum(whole, self.width)
        layout = lay(np.flatnonzero(real), lengths, (len(rows), self.width))
        targets, index = np.zeros((len(rows), 1), np.int32), np.full(len(rows), -1, np.int64)
        targets[real, 0] = self.shard.tokens[offsets[texts + 1]]
        index[real] = offsets[texts]
        last = len(self.shard.tokens) - 1  # a changed text may be longer than the shard's end
        read = self.shard.tokens[np.minimum(offsets[texts][layout.owner] + layout.inner, last)]
        for n, ids in new.items():
            read[layout.owner == n] = ids[: self.width]
        return {
            "tokens": layout.fill(read),
            "segments": layout.segments,
            "positions": layout.positions,
            "targets": targets,
            "weights": real[:, None].astype(np.float32),
            "index": index,
        }


def class_rows(shard: TokenShard, *, context: int, seed: int, ordered: bool) -> ClassRows:
    """Return the rows of a shard of texts and classes; DataError if it holds none."""
    if shard.documents < 2:
        raise DataError(f"{shard.path} holds no text with a class; give more for this split")
    return ClassRows(shard, context)
