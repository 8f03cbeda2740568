"""Confidence intervals by resampling (Efron 1979), percentile method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import DataError


class Estimate(NamedTuple):
    """A value and the ends of its interval; all None where the value is undefined."""

    value: float | None
    low: float | None
    high: float | None


NOTHING = Estimate(None, None, None)


def interval(
    statistic: Callable[..., Any],
    *columns: Sequence[float] | np.ndarray,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Return the statistic of paired columns [N] with its bootstrap interval.

    statistic: (columns [..., N]) -> [...], reducing the last axis. Rows are
    resampled together, so that a ratio of sums keeps its pairs. One row: no interval. No rows, or
    an infinite value: NOTHING. Raises DataError for columns of unequal lengths, or a NaN in them.
    """
    arrays = [np.asarray(column, np.float64) for column in columns]
    check_alike("columns", *arrays)
    count = len(arrays[0])
    if not count:
        return NOTHING
    value = float(statistic(*arrays))
    if not np.isfinite(value):
        return NOTHING
    if count == 1:
        return Estimate(value, None, None)
    rows = np.random.default_rng(seed).integers(0, count, (resamples, count))
    resampled = statistic(*(array[rows] for array in arrays))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(resampled[np.isfinite(resampled)], [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def check_alike(what: str, *arrays: np.ndarray) -> None:
    """Raise DataError unless arrays have the same shape and no NaN."""
    if len({array.shape for array in arrays}) > 1:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise DataError(f"{what} of shapes {shapes} don't belong together; give as many of each")
    for array in arrays:
        if np.isnan(array).any():
            index = tuple(map(int, np.argwhere(np.isnan(array))[0]))
            raise DataError(f"{what} hold NaN at {index}; leave it out, or correct its source")


def mean(values: Sequence[float] | np.ndarray, *, seed: int) -> Estimate:
    """Return the mean of values with its interval."""
    return interval(lambda x: x.mean(axis=-1), values, seed=seed)


def ratio(above: np.ndarray, below: np.ndarray, *, seed: int) -> Estimate:
    """Return sum(above) / sum(below) with its interval; NOTHING if `below` sums to zero.

    Raises DataError as `interval` does.
    """
    check_alike("above and below", np.asarray(above, float), np.asarray(below, float))
    if not np.sum(below):
        return NOTHING

    def divide(a: np.ndarray, b: np.ndarray) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            return a.sum(axis=-1) / b.sum(axis=-1)

    return interval(divide, above, below, seed=seed)


def normal_interval(
    value: float | None, resampled: np.ndarray, *, least: float = -np.inf, most: float = np.inf
) -> Estimate:
    """Return the value +- 1.96 standard deviations of its resampled values.

    For statistics that resampling shifts, since a resample repeats some texts and lacks others:
    entropy, coverage, divergences. The ends are cut to [least, most].
    """
    if value is None or not np.isfinite(value):
        return NOTHING
    resampled = resampled[np.isfinite(resampled)]
    if len(resampled) < 2:
        return Estimate(float(value), None, None)
    half = 1.96 * float(np.std(resampled, ddof=1))
    return Estimate(float(value), max(value - half, least), min(value + half, most))


def count_statistic(
    statistic: Callable[[np.ndarray], Any],
    counts: np.ndarray,
    *,
    seed: int,
    resamples: int = 300,
    most: float = np.inf,
) -> Estimate:
    """Return a statistic of counts summed over texts, with its `normal_interval`.

    counts: [texts, kinds]; statistic: [kinds] -> number, NaN where undefined. One text: no ends.
    """
    if not counts.size:
        return NOTHING
    value = float(statistic(counts.sum(axis=0)))
    if len(counts) == 1:
        return normal_interval(value, np.empty(0))
    rng, share = np.random.default_rng(seed), np.full(len(counts), 1 / len(counts))
    resampled = rng.multinomial(len(counts), share, size=resamples) @ counts
    values = np.asarray([statistic(row) for row in resampled], float)
    return normal_interval(value, values, least=0.0, most=most)
