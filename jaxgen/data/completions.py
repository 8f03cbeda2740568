"""Rows of whole texts for a decoder, which learns what a mask says: the assistant's turns, say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.bins import pack
from jaxgen.data.pack import Batch, documents_of
from jaxgen.data.pairs import check_pairs, firsts, lay, pairs_of
from jaxgen.data.shard import TokenShard
from jaxgen.errors import DataError

TooLong = Literal["cut", "drop", "refuse"]


@dataclass(frozen=True, eq=False)
class CompletionRows:
    """Rows of `width` tokens with one text after another; segment n is a row's n-th.

    The shard holds texts and masks in turn: a mask has 1 for each id that is learnt, else 0.
    texts: numbers of those that are used; lengths: [2, texts], of each how many tokens are read,
    and 0; order, ends: as `bins.pack` returns them. cut: texts of which the end was left out,
    dropped: those that were left out whole.
    """

    shard: TokenShard
    width: int
    seed: int
    name: str
    texts: np.ndarray = field(repr=False)
    lengths: np.ndarray = field(repr=False)
    order: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    cut: int
    dropped: int

    @property
    def count(self) -> int:
        """Rows that hold every text once."""
        return len(self.ends) - 1

    def batch(
        self,
        rows: Int[np.ndarray, "B"],
        epochs: Int[np.ndarray, "B"],
        keys: UInt64[np.ndarray, "B"],
    ) -> Batch:
        """Return tokens, targets, segments, positions, weights [B, T] and index [B].

        weights: 1 where the target is learnt. index: the token of the shard at which the row's
        first text begins.
        """
        texts, places = pairs_of(self, rows, epochs)
        layout = lay(places, self.lengths[0, texts], (len(rows), self.width))
        offsets = self.shard.offsets.astype(np.int64)
        begins, masks = offsets[2 * self.texts[texts]], offsets[2 * self.texts[texts] + 1]
        at = begins[layout.owner] + layout.inner
        learnt = self.shard.tokens[masks[layout.owner] + layout.inner + 1]
        batch = layout.batch(self.shard.tokens[at], self.shard.tokens[at + 1], learnt)
        return batch | {"index": firsts(places, begins, len(rows))}

    @property
    def tokens(self) -> int:
        """Tokens that an epoch reads."""
        return int(self.lengths.sum())

    def notes(self) -> list[str]:
        """Return what a reader should know of texts that are longer than a row."""
        whole, width = self.shard.documents // 2, f"model.context={self.width}"
        lines = []
        if self.cut:
            lines.append(
                f"{self.cut:,} of {whole:,} texts are longer than {width} and lose their end"
            )
        if self.dropped:
            why = "leave nothing to learn in" if self.cut else "are longer than"
            lines.append(f"{self.dropped:,} of {whole:,} texts {why} {width}, and are left out")
        return lines


def completion_rows(
    shard: TokenShard, *, width: int, too_long: TooLong, seed: int, name: str
) -> CompletionRows:
    """Return the rows of a shard of texts and masks; DataError if it holds none.

    too_long: of a text of more than width + 1 ids the end is cut off, which leaves it out where
    nothing is left to learn; or it is dropped; or refused with its number. A text is never cut at
    its beginning, so nothing is learnt after a prompt that is not whole.
    """
    check_pairs(shard)
    offsets = shard.offsets.astype(np.int64)
    sizes = np.diff(offsets)[::2]
    long = sizes > width + 1
    if long.any() and too_long == "refuse":
        number = int(np.flatnonzero(long)[0])
        raise DataError(
            f"{documents_of(shard, int(offsets[2 * number]), 1)} has {sizes[number]} tokens, more "
            f"than model.context={width} takes (objective.too_long=refuse); set it to cut or drop, "
            f"or give a larger model.context"
        )
    used = np.ones_like(long) if too_long == "cut" else ~long
    learnt = np.concatenate([[0], np.cumsum(shard.tokens, dtype=np.int64)])
    first = offsets[1:-1:2] + 1  # the first id is predicted by none
    last = offsets[1:-1:2] + np.minimum(sizes, width + 1)
    used &= learnt[last] > learnt[first]
    texts = np.flatnonzero(used)
    if not len(texts):
        raise DataError(
            f"{shard.path} holds no text with anything to learn within model.context={width} "
            f"(texts: {len(sizes)}); give a larger one"
        )
    lengths = np.minimum(sizes[texts] - 1, width)
    order, ends = pack(lengths, np.zeros_like(lengths), (width, 1))
    return CompletionRows(
        shard=shard,
        width=width,
        seed=seed,
        name=f"{name} {width} {too_long}",
        texts=texts,
        lengths=np.stack([lengths, np.zeros_like(lengths)]),
        order=order,
        ends=ends,
        cut=int((long & used).sum()),
        dropped=len(sizes) - len(texts),
    )
