"""Choosing among finished texts, by any scorer, on the host."""

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
    """Return (place of the best candidate, all scores); of equals the first.

    Raises ConfigError for no candidates, or a score that is NaN.
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
    """Return (place, expected utilities): the candidate that all the others agree with most.

    Minimum Bayes risk decoding (Kumar and Byrne 2004; Eikema and Aziz 2020): candidates are also
    the sample of references. utility: (hypothesis, reference) -> larger is better, such as a
    sentence's chrF. weights: how much each reference counts; None counts all the same, which
    is right for drawn candidates. Equal candidates are scored once.
    """
    if not candidates:
        raise ConfigError("minimum_risk of no candidates; give at least one")
    shares = [1.0] * len(candidates) if weights is None else [float(one) for one in weights]
    if len(shares) != len(candidates) or not sum(shares) > 0 or min(shares) < 0:
        raise ConfigError(
            f"weights={weights} must be {len(candidates)} numbers from 0 on, not all 0"
        )
    known: dict[tuple[int, int], float] = {}
    first = [next(i for i, other in enumerate(candidates) if other == one) for one in candidates]

    def agreement(i: int, j: int) -> float:
        pair = (first[i], first[j])
        if pair not in known:
            known[pair] = float(utility(candidates[i], candidates[j]))
        return known[pair]

    everyone = range(len(candidates))
    scores = [
        sum(share * agreement(i, j) for j, share in enumerate(shares)) / sum(shares)
        for i in everyone
    ]
    _refuse_nan(scores)
    return max(everyone, key=scores.__getitem__), scores


def _refuse_nan(scores: Sequence[float]) -> None:
    bad = [place for place, score in enumerate(scores) if math.isnan(score)]
    if bad:
        raise ConfigError(f"the score of candidate {bad[0]} is NaN; correct the scorer")
