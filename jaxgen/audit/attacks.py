"""What a model tells of its training text: exposure, membership, and a lower bound of epsilon.

Everything here is a function of scores, which are higher the better a model knows a text: its
log-probability, or minus its loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxgen.errors import ConfigError

LEVEL = 0.95  # of confidence, of all intervals and bounds
FALSE_ALARMS = (0.001, 0.01, 0.1)  # rates at which attacks are judged
SHARES = (1.0, 0.5, 0.25, 0.125)  # of the canaries that `epsilon_bound` guesses
GUESSES = 8  # fewest of them
STEEPEST = 50.0  # an epsilon beyond which no bound is looked for
FEW = 64  # shadow models below which all texts share a deviation (Carlini et al. 2022)


class Interval(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


class Bound(NamedTuple):
    """A lower bound of epsilon: `right` of `guesses` about which canaries were planted are."""

    epsilon: float
    guesses: int
    right: int


def exposure(
    canaries: Float[np.ndarray, "N"], others: Float[np.ndarray, "M"]
) -> Float[np.ndarray, "N"]:
    """Return log2((M + 1) / rank) of each canary among M secrets, in bits (Carlini et al. 2019).

    A model that has seen none of them gives 1.44 bits on average, and log2(M + 1) is the most.
    """
    if not len(others):
        raise ConfigError("others is empty; give the scores of secrets that are not in the text")
    ordered = np.sort(others)
    # Of equal scores the canary comes last: a tie is no memory.
    ranks = 1 + len(ordered) - np.searchsorted(ordered, canaries, side="left")
    return np.log2((len(ordered) + 1) / ranks)


def attack(members: Float[np.ndarray, "N"], others: Float[np.ndarray, "M"]) -> dict[str, Interval]:
    """Return how well scores tell members from others: `auc`, and `tpr_at_RATE` of false alarms.

    The interval of AUC is DeLong's (1988), those of the rates are exact (Clopper and Pearson 1934);
    a threshold is the lowest that keeps to the rate of false alarms among the others.
    """
    for name, scores in (("members", members), ("others", others)):
        if len(scores) < 2:
            raise ConfigError(f"{name} has {len(scores)} scores; give at least 2")
    a, b = np.sort(members), np.sort(others)
    # The part of the other side that each score beats, ties by half.
    wins = (np.searchsorted(b, members, "left") + np.searchsorted(b, members, "right")) / 2 / len(b)
    losses = (np.searchsorted(a, others, "left") + np.searchsorted(a, others, "right")) / 2 / len(a)
    auc = float(wins.mean())
    spread = 1.96 * (wins.var(ddof=1) / len(a) + losses.var(ddof=1) / len(b)) ** 0.5
    results = {"auc": Interval(auc, max(auc - spread, 0.0), min(auc + spread, 1.0))}
    for rate in FALSE_ALARMS:
        allowed = int(rate * len(b))
        caught = int((members > b[len(b) - 1 - allowed]).sum())
        results[f"tpr_at_{rate:g}"] = _share(caught, len(a))
    return results


def _share(count: int, number: int) -> Interval:
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = beta.ppf(tail, count, number - count + 1) if count else 0.0
    high = beta.ppf(1 - tail, count + 1, number - count) if count < number else 1.0
    return Interval(count / number, float(low), float(high))


def likelihood_ratios(
    scores: Float[np.ndarray, "N"],
    shadows: Float[np.ndarray, "K N"],
    inside: Bool[np.ndarray, "K N"],
) -> Float[np.ndarray, "N"]:
    """Return log p(score | in the text) - log p(score | not in it): LiRA (Carlini et al. 2022).

    Args:
        scores: of each text by the model that is attacked.
        shadows: of each text by each of K models of other texts.
        inside: whether its text had it. Each text must be in that of some, and not in that of some.

    Below 64 shadow models the two deviations are those of all texts, else of each.
    """
    for name, some in (("in", inside), ("left out of", ~inside)):
        if not some.any(axis=0).all():
            raise ConfigError(
                f"shadows={len(shadows)}: a text is {name} the text of none; give more shadows"
            )
    logs = []
    for some in (inside, ~inside):
        count = some.sum(axis=0)
        mean = np.where(some, shadows, 0).sum(axis=0) / count
        squares = np.where(some, (shadows - mean) ** 2, 0)
        if len(shadows) < FEW:
            variance = squares.sum() / max(some.sum() - some.shape[1], 1)
        else:
            variance = squares.sum(axis=0) / np.maximum(count - 1, 1)
        variance = np.maximum(variance, 1e-12)
        logs.append(-((scores - mean) ** 2) / (2 * variance) - np.log(variance) / 2)
    return logs[0] - logs[1]


def epsilon_bound(
    scores: Float[np.ndarray, "N"], planted: Bool[np.ndarray, "N"], delta: float
) -> Bound:
    """Return an epsilon that the training had at least, by one run (Steinke et al. 2023).

    The highest scores are guessed to be planted, and as many of the lowest not to be. It holds with
    a confidence of 95 % where each canary was planted by a fair coin, and is one unit. Several
    numbers of guesses are tried, each with its part of what is left.

    Args:
        scores: of each canary by the model. planted: the coins. delta: of the promise.
    """
    order, count = np.argsort(scores, kind="stable"), len(scores)
    sizes = {max(int(share * count / 2), GUESSES // 2) for share in SHARES}
    sizes = sorted(size for size in sizes if 2 * size <= count)
    best = Bound(0.0, 0, 0)
    for size in sizes:
        right = int(planted[order[-size:]].sum() + (~planted[order[:size]]).sum())
        low = _bound(count, 2 * size, right, delta, (1 - LEVEL) / len(sizes))
        if low > best.epsilon or not best.guesses:
            best = Bound(low, 2 * size, right)
    return best


def _bound(count: int, guesses: int, right: int, delta: float, chance: float) -> float:
    """Return the largest epsilon of which so many right guesses are less likely than `chance`."""
    from scipy.optimize import brentq

    excess = lambda epsilon: likelihood(count, guesses, right, epsilon, delta) - chance  # noqa: E731
    if excess(0.0) >= 0:
        return 0.0
    root: Any = STEEPEST if excess(STEEPEST) < 0 else brentq(excess, 0.0, STEEPEST, xtol=1e-6)
    return max(root - 1e-6, 0.0)


def likelihood(count: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound of the chance that so many guesses are right under (epsilon, delta).

    Steinke et al. 2023, theorem 5.2: those of randomised response, and delta times what it may add.
    """
    from scipy.special import expit
    from scipy.stats import binom

    sure = expit(epsilon)
    tail = float(binom.sf(right - 1, guesses, sure))
    if not right or not delta:
        return min(tail, 1.0)
    sums = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, sure))
    worst = float((sums / np.arange(1, right + 1)).max())
    return min(tail + 2 * count * delta * worst, 1.0)


def summary(values: Sequence[float] | np.ndarray) -> dict[str, float | int]:
    """Return the number, least, median, mean and largest of some values."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return {"number": 0}
    return {
        "number": len(values),
        "least": float(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "largest": float(values.max()),
    }
