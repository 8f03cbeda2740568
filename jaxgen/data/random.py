"""Random numbers as a pure function of (seed, position), alike on any machine and numpy."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float, Int, UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROUNDS = 6  # of a Feistel network; four are enough for a permutation that looks random


def hash_seed(seed: int, number: int) -> int:
    """Return 32 bits of seed and number."""
    raw = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(raw[:4], "big")


def stream_keys(seed: int, places: np.ndarray) -> UInt64[np.ndarray, "B"]:
    """Return the key of the random stream of each place (a row of an epoch, say)."""
    start = int.from_bytes(hashlib.sha256(f"stream {seed}".encode()).digest()[:8], "big")
    return _mix(np.uint64(start) + places.astype(np.uint64) * GOLDEN)  # wraps, as it should


def uniform(
    keys: UInt64[np.ndarray, "B"], count: int, *, stream: int
) -> Float[np.ndarray, "B {count}"]:
    """Return `count` numbers in [0, 1) for each key: SplitMix64 (Steele et al. 2014).

    stream: another number gives the same key independent draws, for another use.
    """
    turn = np.uint64((stream + 1) * 0xD1B54A32D192ED03 % 2**64)
    starts = _mix(keys + turn)
    counters = starts[:, None] + GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(counters) >> np.uint64(11)) * 2.0**-53


def order(keys: UInt64[np.ndarray, "B"], count: int, *, stream: int) -> np.ndarray:
    """Return a random permutation of 0 .. count - 1 for each key: [B, count]."""
    return np.argsort(uniform(keys, count, stream=stream), axis=1, kind="stable")


def permuted(places: Int[np.ndarray, "B"], count: int, seed: int) -> Int[np.ndarray, "B"]:
    """Return the images of places under a random permutation of 0 .. count - 1, up to 2^62.

    Nothing is kept of it: a Feistel network (Luby and Rackoff 1988) permutes the least power of
    four that holds count, and what falls outside goes round again (Black and Rogaway 2002).
    """
    half = np.uint64(max((count - 1).bit_length() + 1, 2) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = stream_keys(seed, np.arange(ROUNDS))
    images, outside = places.astype(np.uint64), np.arange(len(places))
    while outside.size:
        left, right = images[outside] >> half, images[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        images[outside] = (left << half) | right
        outside = outside[images[outside] >= np.uint64(count)]
    return images.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
