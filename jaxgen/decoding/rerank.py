"""Choose among finished texts on the host, by any score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.errors import ConfigError

T = TypeVar("T")


@arguments.checked
def best_of(candidates: Sequence[T], scorer: Callable[[T], float]) -> tuple[int, list[float]]:
    """Return the candidate with the highest score.

    Args:
        candidates: at least one, such as texts.
        scorer: candidate -> score.

    Returns:
        (index of the best candidate, the first of equals; all scores).

    Raises:
        ConfigError: for no candidates, or a score that is NaN.

    >>> jaxgen.best_of(["a", "abc"], len)
    (1, [1.0, 3.0])
    """
    if not candidates:
        raise ConfigError("best_of no candidates; give at least one")
    scores = [float(scorer(one)) for one in candidates]
    _refuse_nan(scores)
    return max(range(len(scores)), key=scores.__getitem__), scores


@arguments.checked(weights=at_least(0))
def minimum_risk(
    candidates: Sequence[T],
    utility: Callable[[T, T], float],
    *,
    weights: Sequence[float] | None = None,
) -> tuple[int, list[float]]:
    """Return the candidate that the others agree with most.

    Minimum Bayes risk decoding (Kumar and Byrne 2004; Eikema and Aziz 2020): the candidates are
    also the references. Equal candidates are scored once.

    Args:
        candidates: at least one, such as sampled texts.
        utility: (hypothesis, reference) -> number, larger is better, such as a sentence's chrF.
        weights: weight of each reference, at least 0; None for equal weights, which is right for
            sampled candidates.

    Returns:
        (index of the best candidate, the first of equals; expected utilities).

    Raises:
        ConfigError: for no candidates, wrong weights, or a utility that is NaN.

    >>> jaxgen.minimum_risk(["a", "b", "b"], lambda one, other: one == other)[0]
    1
    """
    if not candidates:
        raise ConfigError("minimum_risk of no candidates; give at least one")
    shares = [1.0] * len(candidates) if weights is None else [float(one) for one in weights]
    if len(shares) != len(candidates) or not sum(shares) > 0 or min(shares) < 0:
        raise ConfigError(
            f"weights={weights} must be {len(candidates)} numbers from 0 on, not all 0"
        )
    cached: dict[tuple[int, int], float] = {}
    first = [next(i for i, other in enumerate(candidates) if other == one) for one in candidates]

    def agreement(i: int, j: int) -> float:
        pair = (first[i], first[j])
        if pair not in cached:
            cached[pair] = float(utility(candidates[i], candidates[j]))
        return cached[pair]

    every = range(len(candidates))
    scores = [
        sum(share * agreement(i, j) for j, share in enumerate(shares)) / sum(shares) for i in every
    ]
    _refuse_nan(scores)
    return max(every, key=scores.__getitem__), scores


def _refuse_nan(scores: Sequence[float]) -> None:
    bad = next((i for i, score in enumerate(scores) if math.isnan(score)), None)
    if bad is not None:
        raise ConfigError(f"the score of candidate {bad} is NaN; correct the scorer")
