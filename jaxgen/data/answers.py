"""Rows of prompts and their answers for a decoder, which learns the answers alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, UInt64

from jaxgen.data.bins import pack
from jaxgen.data.pack import Batch
from jaxgen.data.pairs import check_pairs, firsts, lay, pairs_of
from jaxgen.data.shard import TokenShard


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """Rows of `width` tokens that hold whole prompts, each before its answer.

    The shard holds prompts and answers in turn; begins, lengths: [2, pairs], where in it the two
    begin and how many of their tokens are used. Of a prompt that is too long the end is kept.
    order, ends: as `bins.pack` returns them. cut: pairs of which a side did not fit.
    """

    shard: TokenShard
    width: int
    seed: int
    name: str
    begins: np.ndarray = field(repr=False)
    lengths: np.ndarray = field(repr=False)
    order: np.ndarray = field(repr=False)
    ends: np.ndarray = field(repr=False)
    cut: int

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
        """Return tokens, targets, segments, positions, weights [B, T] and index [B].

        Segment n of a row is its n-th prompt and answer; weights are 1 where the target is of an
        answer, else 0. index: the token of the shard at which the row's first prompt begins.
        """
        pairs, places = pairs_of(self, rows, epochs)
        (prompt, answer), size = self.lengths[:, pairs], len(rows)
        layout = lay(places, prompt + answer - 1, (size, self.width))
        owner, inner = layout.owner, layout.inner

        def ids_at(positions: np.ndarray) -> np.ndarray:
            within = positions < prompt[owner]
            begins = self.begins[:, pairs]
            at = np.where(
                within, begins[0][owner] + positions, begins[1][owner] + positions - prompt[owner]
            )
            return self.shard.tokens[at].astype(np.int32)

        learnt = inner + 1 >= prompt[owner]
        batch = layout.batch(ids_at(inner), ids_at(inner + 1), learnt)
        return batch | {"index": firsts(places, self.begins[0, pairs], size)}


def answer_rows(
    shard: TokenShard,
    *,
    width: int,
    most: tuple[int, int],
    trim: tuple[int, int],
    seed: int,
    name: str,
) -> AnswerRows:
    """Return the rows of a shard of prompts and answers; DataError if it holds none.

    most: tokens of a prompt and of an answer that are used at most. trim: tokens left out at the
    end of each prompt and at the beginning of each answer (the eos and bos that stand around a
    text by itself).
    """
    check_pairs(shard)
    offsets = shard.offsets.astype(np.int64)
    whole = np.diff(offsets)
    needed = np.stack([whole[::2] - trim[0], whole[1::2] - trim[1]])
    # A token of the prompt stays, for the first of an answer is predicted from it.
    answer = np.minimum(needed[1], min(most[1], width))
    prompt = np.minimum(np.minimum(needed[0], most[0]), width + 1 - answer)
    lengths = np.stack([prompt, answer])
    begins = np.stack([offsets[:-1:2] + needed[0] - prompt, offsets[1:-1:2] + trim[1]])
    order, ends = pack(lengths.sum(0) - 1, np.zeros_like(answer), (width, 1))
    return AnswerRows(
        shard=shard,
        width=width,
        seed=seed,
        name=f"{name} {width} {most[0]} {most[1]}",
        begins=begins,
        lengths=lengths,
        order=order,
        ends=ends,
        cut=int((needed > lengths).any(axis=0).sum()),
    )
