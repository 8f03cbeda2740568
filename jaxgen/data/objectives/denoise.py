"""BART's objective (Lewis et al. 2020): sentences out of order, spans behind one mask each."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt64

from jaxgen.data.random import uniform

LONGEST = 64  # of a Poisson span; for means up to 20 the rest of the distribution is below 1e-9


def permute(
    tokens: Int[np.ndarray, "B T"],
    ends: Bool[np.ndarray, "B T"],
    keys: UInt64[np.ndarray, "B"],
) -> Int[np.ndarray, "B T"]:
    """Return the rows with their sentences in a random order; `ends` ends a sentence."""
    width = tokens.shape[1]
    number = np.cumsum(ends, axis=1) - ends
    lot = np.take_along_axis(uniform(keys, width, stream=1), number, axis=1)
    places = np.broadcast_to(np.arange(width), tokens.shape)
    return np.take_along_axis(tokens, np.lexsort((places, lot), axis=1), axis=1)


def infill(
    tokens: Int[np.ndarray, "B T"],
    keys: UInt64[np.ndarray, "B"],
    *,
    rate: float,
    span: float,
    mask: int,
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    """Return (rows padded with 0, their lengths) with spans replaced by one `mask` each.

    Spans begin at random tokens, and their lengths are Poisson with mean `span`; as many as come
    to rate * T tokens are taken. One of length 0 puts a mask before its token. Spans that overlap
    or touch are one.
    """
    rows, width = tokens.shape
    many = max(int(np.ceil(2 * rate * width / span)) + 4, 1)
    many = min(many, width)
    sizes = _poisson(uniform(keys, many, stream=2), span)
    begins = np.argsort(uniform(keys, width, stream=3), axis=1)[:, :many]
    before = np.cumsum(sizes, axis=1) - sizes
    masked = before < round(rate * width)
    covered = _covered(begins, np.where(masked, sizes, 0), width)
    inserted = np.zeros((rows, width), bool)
    np.put_along_axis(inserted, begins, masked & (sizes == 0), axis=1)
    inserted &= ~covered
    first = covered.copy()
    first[:, 1:] &= ~covered[:, :-1]
    # Two places for each token: a mask that stands before it, and the token itself.
    pairs = np.stack([np.full_like(tokens, mask), np.where(first, mask, tokens)], axis=2)
    keep = np.stack([inserted, first | ~covered], axis=2).reshape(rows, -1)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :width]
    infilled = np.take_along_axis(pairs.reshape(rows, -1), order, axis=1)
    sizes_of = np.minimum(keep.sum(axis=1), width)
    return np.where(np.arange(width) < sizes_of[:, None], infilled, 0).astype(np.int32), sizes_of


def _poisson(chance: np.ndarray, mean: float) -> np.ndarray:
    """Return Poisson numbers from uniform ones, by the inverse of the distribution."""
    counts = np.arange(1, LONGEST)
    steps = np.concatenate([[0.0], np.cumsum(np.log(mean) - np.log(counts))]) - mean
    return np.searchsorted(np.cumsum(np.exp(steps))[:-1], chance, side="right")


def _covered(begins: np.ndarray, sizes: np.ndarray, width: int) -> np.ndarray:
    changes = np.zeros((len(begins), width + 1), np.int64)
    rows = np.broadcast_to(np.arange(len(begins))[:, None], begins.shape)
    np.add.at(changes, (rows, begins), sizes > 0)
    np.add.at(changes, (rows, np.minimum(begins + sizes, width)), -(sizes > 0).astype(np.int64))
    return np.cumsum(changes, axis=1)[:, :-1] > 0
