"""T5's span corruption (Raffel et al. 2020): spans become sentinels, and are to be written."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt64

from jaxgen.data.random import order


def lengths(source: int, rate: float, span: float) -> tuple[int, int]:
    """Return (tokens of text, tokens of the target) that make a source of `source` at most.

    source: at least 3. As `random_spans_helper` of T5's published code, source and target end with
    eos. That code counts no noise in a short text, which gets one noise token all the same, and so
    makes a source of one token too many; here both lengths are those that `corrupt` comes to.
    """

    def come_to(tokens: int) -> tuple[int, int]:
        noise, spans = counts(tokens, rate, span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = source
    while tokens > 2 and come_to(tokens)[0] > source:
        tokens -= 1
    while come_to(tokens + 1)[0] <= source:
        tokens += 1
    reached, target = come_to(tokens)
    # T5's own exception, so that both are the same round number.
    if rate == 0.5 and target > reached:
        return tokens - 1, come_to(tokens - 1)[1]
    return tokens, target


def noise_mask(
    keys: UInt64[np.ndarray, "B"], length: int, rate: float, span: float
) -> Bool[np.ndarray, "B {length}"]:
    """Return which tokens are noise: `random_spans_noise_mask` of T5's code, row by row.

    Every row has as many noise tokens and spans; rows begin with text and end with noise.
    """
    noise, spans = counts(length, rate, span)
    parts = np.stack(
        [
            _segments(keys, length - noise, spans, stream=1),
            _segments(keys, noise, spans, stream=2),
        ],
        axis=2,
    ).reshape(len(keys), 2 * spans)
    begins = np.cumsum(parts, axis=1)[:, :-1]
    marks = np.zeros((len(keys), length), np.int64)
    np.put_along_axis(marks, begins, 1, axis=1)
    return np.cumsum(marks, axis=1) % 2 == 1


def counts(length: int, rate: float, span: float) -> tuple[int, int]:
    """Return how many of so many tokens are noise, and in how many spans."""
    noise = min(max(round(length * rate), 1), length - 1)
    # More spans than there are tokens between them could not be told apart.
    return noise, min(max(round(noise / span), 1), noise, length - noise)


def _segments(keys: np.ndarray, items: int, segments: int, *, stream: int) -> np.ndarray:
    """Return [B, segments] lengths of at least 1 that add up to items, all ways as likely."""
    cuts = np.sort(order(keys, items - 1, stream=stream)[:, : segments - 1], axis=1) + 1
    edges = np.pad(cuts, ((0, 0), (1, 1)), constant_values=0)
    edges[:, -1] = items
    return np.diff(edges, axis=1)


def corrupt(
    tokens: Int[np.ndarray, "B T"],
    noise: Bool[np.ndarray, "B T"],
    sentinels: Int[np.ndarray, "N"],
    eos: int,
) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B U"]]:
    """Return (source, target): the n-th noise span is the n-th sentinel in the source, and in the
    target the n-th sentinel and then the span; both end with eos.

    All rows of `noise` must have as many tokens and spans, so that the result has no padding.
    """
    return _replaced(tokens, noise, sentinels, eos), _replaced(tokens, ~noise, sentinels, eos)


def _replaced(tokens: np.ndarray, gone: np.ndarray, sentinels: np.ndarray, eos: int) -> np.ndarray:
    first = gone.copy()
    first[:, 1:] &= ~gone[:, :-1]
    number = np.maximum(np.cumsum(first, axis=1) - 1, 0)
    replaced = np.where(first, sentinels[np.minimum(number, len(sentinels) - 1)], tokens)
    rows = replaced[first | ~gone].reshape(len(tokens), -1)
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=eos).astype(np.int32)
