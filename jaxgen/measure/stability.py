"""Stability of a generator: repetition, calibration, sensitivity to small changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.errors import ConfigError, DataError
from jaxgen.measure.bootstrap import (
    NOTHING,
    Estimate,
    check_alike,
    interval,
    mean,
    normal_interval,
    ratio,
)
from jaxgen.measure.diversity import Tokens, ngrams


def rep(texts: Sequence[Tokens], window: int, *, seed: int) -> Estimate:
    """Return rep-l (Welleck et al. 2020): tokens that occur among the `window` tokens before.

    ConfigError unless window >= 1.
    """
    if window < 1:
        raise ConfigError(f"window={window} must be at least 1")
    hits = [sum(t in x[max(0, i - window) : i] for i, t in enumerate(x)) for x in texts]
    return ratio(np.asarray(hits, float), np.asarray([len(x) for x in texts], float), seed=seed)


def seq_rep(texts: Sequence[Tokens], n: int, *, seed: int) -> Estimate:
    """Return seq-rep-n (Welleck et al. 2020): the mean part of a text's n-grams that are repeats.

    Texts shorter than n are left out; NOTHING if all are.
    """
    grams = [ngrams(text, n) for text in texts]
    return mean([1 - len(set(x)) / len(x) for x in grams if x], seed=seed)


def loops(texts: Sequence[Tokens], *, seed: int, longest: int = 32) -> Estimate:
    """Return the share of texts that end in a phrase of up to `longest` tokens, 3 times."""
    return mean([float(_loops(list(text), longest)) for text in texts], seed=seed)


def _loops(text: list, longest: int) -> bool:
    for period in range(1, min(longest, len(text) // 3) + 1):
        tail = text[-3 * period :]
        if tail[:period] == tail[period : 2 * period] == tail[2 * period :]:
            return True
    return False


def spread(above: np.ndarray, below: np.ndarray, *, seed: int, resamples: int = 300) -> Estimate:
    """Return the standard deviation over seeds of a figure that is a ratio of sums over texts.

    above, below: [seeds, N], the same N prompts for every seed, which are drawn together for the
    interval. NOTHING for fewer than two seeds, or where a seed has nothing below.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    check_alike("above and below", above, below)
    if len(above) < 2 or not (below.sum(axis=1) > 0).all():
        return NOTHING

    def deviation(rows: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = above[:, rows].sum(axis=-1) / below[:, rows].sum(axis=-1)
        return values.std(axis=0, ddof=1)

    count = above.shape[1]
    value = float(deviation(np.arange(count)))
    if count == 1:
        return Estimate(value, None, None)
    resampled = np.random.default_rng(seed).integers(0, count, (resamples, count))
    return normal_interval(value, deviation(resampled), least=0.0)


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, *, seed: int, bins: int = 10
) -> Estimate:
    """Return the expected calibration error (Guo et al. 2017) over `bins` bins of equal width.

    confidence: [N] probability of the likeliest token; correct: [N] whether it was the true one.
    Raises DataError for confidences outside [0, 1].
    """
    confidence = np.asarray(confidence, float)
    if ((confidence < 0) | (confidence > 1)).any():
        wrong = confidence[(confidence < 0) | (confidence > 1)][0]
        raise DataError(f"confidence {wrong:g} is no probability; give numbers from 0 to 1")
    if not len(confidence):
        return NOTHING

    def error(confidence: np.ndarray, correct: np.ndarray) -> Any:
        which = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
        gaps = [((correct - confidence) * (which == b)).sum(axis=-1) for b in range(bins)]
        return np.abs(np.stack(gaps)).sum(axis=0) / confidence.shape[-1]

    return interval(error, confidence, np.asarray(correct, float), seed=seed, resamples=300)


def variation(p: np.ndarray, q: np.ndarray, *, seed: int) -> Estimate:
    """Return the mean total variation distance, 0 to 1, of rows of probabilities [N, V].

    Raises DataError for unequal shapes, or NaN.
    """
    p, q = np.asarray(p, float), np.asarray(q, float)
    check_alike("p and q", p, q)
    return mean(np.abs(p - q).sum(axis=-1) / 2, seed=seed)


def changed_share(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of ids that differ between two arrays; DataError unless shapes match."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or not a.size:
        raise DataError(f"ids of shapes {a.shape} and {b.shape} can't be compared one by one")
    return float(np.mean(a != b))
