"""Resampling by a polyphase filter: a windowed sinc, piece by piece of any length."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, gcd

import numpy as np

LOBES = 32  # of the sinc, to each side
BETA = 10.0  # of the Kaiser window: side lobes at -100 dB
PASSED = 0.95  # of the lower rate's band
BLOCK = 1 << 16  # samples made at once


def resample(
    read: Callable[[int, int], np.ndarray], length: int, rate: int, target: int
) -> np.ndarray:
    """Return float32 samples at the rate `target` of a sound of `length` samples at `rate`.

    read: (begin, end) -> those of its samples. The result has ceil(length * target / rate).
    """
    if rate == target:
        return np.ascontiguousarray(read(0, length), np.float32)
    divisor = gcd(rate, target)
    up, down = target // divisor, rate // divisor
    filters = _filters(up, down)
    reach = filters.shape[1] // 2
    out = np.empty(ceil(length * target / rate), np.float32)
    step = max(BLOCK // up, 1) * up
    for begin in range(0, len(out), step):
        end = min(begin + step, len(out))
        # Sample n of the result lies at n * down / up of the sound.
        first, last = begin * down // up - reach + 1, (end - 1) * down // up + reach + 1
        inside = read(max(first, 0), min(last, length))
        around = (max(-first, 0), max(last - length, 0))
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(inside, around), 2 * reach)
        for phase in range(min(up, end - begin)):
            places = (begin + phase) * down // up - reach + 1 - first
            part = windows[places::down][: ceil((end - begin - phase) / up)]
            out[begin + phase : end : up] = part @ filters[(begin + phase) * down % up]
    return out


@lru_cache(maxsize=8)
def _filters(up: int, down: int) -> np.ndarray:
    """Return one filter [taps] for each of the `up` places between two samples."""
    band = PASSED * min(1.0, up / down)
    reach = ceil(LOBES / band)
    places = np.arange(1 - reach, reach + 1)[None] - np.arange(up)[:, None] / up
    window = np.i0(BETA * np.sqrt(np.maximum(1 - (places / reach) ** 2, 0))) / np.i0(BETA)
    filters = band * np.sinc(band * places) * window
    return (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)
