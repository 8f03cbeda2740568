"""Pairs packed into rows of two widths, and which pair lies where in an epoch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from jaxgen.data.random import hash_seed, stream_keys, uniform

GROUP = 1 << 14  # pairs packed together: more would hardly pack better, and take longer


def pack(
    sources: Int[np.ndarray, "N"], targets: Int[np.ndarray, "N"], widths: tuple[int, int]
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "R1"]]:
    """Return (order, ends): row r holds the pairs order[ends[r] : ends[r + 1]].

    sources, targets: lengths, none above its width. Best fit, the largest first, in two dimensions
    at once, as Krell et al. (2021, "Efficient sequence packing") do in one.
    """
    shuffled = np.argsort(uniform(stream_keys(0, np.arange(len(sources))), 1, stream=0)[:, 0])
    row = np.empty(len(sources), np.int64)
    first = 0
    for begin in range(0, len(shuffled), GROUP):
        group = shuffled[begin : begin + GROUP]
        row[group] = first + _best_fit(sources[group], targets[group], widths)
        first = int(row[group].max()) + 1
    order = np.argsort(row, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(row, minlength=first))])


def _best_fit(sources: np.ndarray, targets: np.ndarray, widths: tuple[int, int]) -> np.ndarray:
    size = sources / widths[0] + targets / widths[1]
    room = np.zeros((2, len(size)), np.int64)
    rows, used = np.empty(len(size), np.int64), 0
    for i in np.argsort(-size, kind="stable"):
        left = room[0, :used] - sources[i]
        below = room[1, :used] - targets[i]
        rest = np.where((left >= 0) & (below >= 0), left + below, widths[0] + widths[1])
        index = int(rest.argmin()) if used else 0
        if not used or rest[index] == widths[0] + widths[1]:
            index, used = used, used + 1
            room[:, index] = widths
        room[0, index] -= sources[i]
        room[1, index] -= targets[i]
        rows[i] = index
    return rows


def swapped(
    sources: Int[np.ndarray, "N"], targets: Int[np.ndarray, "N"], seed: int, epoch: int
) -> Int[np.ndarray, "N"]:
    """Return which pair takes the place of each in an epoch: one with the same two lengths.

    So each epoch puts pairs together anew, and yet packs as well, in as many rows.
    """
    kinds = sources.astype(np.int64) * (int(targets.max()) + 1) + targets
    chance = uniform(stream_keys(hash_seed(seed, epoch), np.arange(len(kinds))), 1, stream=1)[:, 0]
    pairs = np.empty(len(kinds), np.int64)
    pairs[np.argsort(kinds, kind="stable")] = np.lexsort((chance, kinds))
    return pairs
