"""What private steps cost: epsilon of noise, sampling and steps, by `dp-accounting`.

A step takes each of `population` units with probability `rate`, at most `size` of them (a random
subset of what was drawn beyond), and adds Gaussian noise to the sum of their clipped gradients. Two
data sets are neighbours where one has a unit more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, expm1, log
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxgen.errors import ConfigError, MissingPackageError

Kind = Literal["pld", "rdp"]
INTERVAL = 1e-4  # of privacy losses in a PLD, as dp-accounting has it by default
COARSE = 1e-3  # where it is computed often: an upper bound too, ten times as fast
# Chance of a step for which more rows are drawn than fit; rdp can't account for more.
OVERFLOW: dict[str, float] = {"pld": 1e-6, "rdp": 1e-15}
SOLVED = 1e-3  # relative distance below its target at which an epsilon is solved for
LARGEST = 40  # epsilon, or minus it, of the promises that `largest_chance` goes by
LEAST, MOST = 0.01, 1e4  # noise multipliers between which one is looked for


@dataclass(frozen=True)
class Mechanism:
    """What a private step does to the data.

    noise: deviation of the noise in multiples of the clip. rate: chance of each unit to be in a
    step. population: units; size: most of them in a step.
    """

    noise: float
    rate: float
    population: int
    size: int

    @property
    def overflow(self) -> float:
        """The chance of a step to draw more units than fit."""
        from scipy.stats import binom

        return float(binom.sf(self.size, self.population, self.rate))


def dp_accounting() -> ModuleType:
    """Return the package; MissingPackageError, which names the extra, where it is absent."""
    try:
        import dp_accounting
    except ImportError as error:
        raise MissingPackageError(
            "train.privacy needs the `dp-accounting` package: pip install 'jaxgen[privacy]'"
        ) from error
    return dp_accounting


def largest_expected(population: int, size: int, *, accountant: Kind = "pld") -> float:
    """Return the expected units of a step that overflow `size` with a chance of OVERFLOW."""
    from scipy.optimize import brentq
    from scipy.stats import binom

    if size >= population:
        return population / 2
    chance = OVERFLOW[accountant]
    excess = lambda rate: log(max(binom.sf(size, population, rate), 1e-300) / chance)  # noqa: E731
    root: Any = brentq(excess, 1e-12, size / population, xtol=1e-12)
    return population * root


def epsilon(
    mechanism: Mechanism,
    steps: int,
    delta: float,
    *,
    accountant: Kind = "pld",
    interval: float = INTERVAL,
) -> float:
    """Return the epsilon of so many steps.

    Args:
        mechanism: of each of the steps.
        steps: 0 or more.
        delta: in (0, 1).
        accountant: pld counts the truncation of a step that overflows; rdp, which can't, pays for
            it with a part of delta.
        interval: of privacy losses in a PLD; a larger one gives a larger epsilon, sooner.

    Raises:
        ConfigError: where steps overflow too often for rdp.
    """
    if not steps:
        return 0.0
    if accountant == "pld":
        return float(_composed(mechanism, steps, interval).get_epsilon_for_delta(delta))
    return _renyi(mechanism, steps, delta)


def largest_chance(
    mechanism: Mechanism, steps: int, chance: Float[np.ndarray, "N"]
) -> Float[np.ndarray, "N"]:
    """Return the largest chance, after so many steps on a unit, of what has `chance` without it.

    What every promise (epsilon, delta) of the steps leaves: exp(epsilon) * chance + delta.
    """
    losses = np.linspace(-LARGEST, LARGEST, 20 * LARGEST + 1)
    deltas = np.asarray(_composed(mechanism, steps, COARSE).get_delta_for_epsilon(losses))
    return np.minimum((np.exp(losses) * chance[:, None] + deltas).min(axis=1), 1.0)


@lru_cache(maxsize=64)
def _composed(mechanism: Mechanism, steps: int, interval: float) -> Any:
    return _one(mechanism, interval).self_compose(steps)


@lru_cache(maxsize=8)
def _one(mechanism: Mechanism, interval: float) -> Any:
    dp_accounting()
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
        dataset_size=mechanism.population,
        sampling_probability=mechanism.rate,
        truncated_batch_size=mechanism.size,
        noise_multiplier=mechanism.noise,
        value_discretization_interval=interval,
    )


def _renyi(mechanism: Mechanism, steps: int, delta: float) -> float:
    dp = dp_accounting()
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant()
    event = dp.PoissonSampledDpEvent(mechanism.rate, dp.GaussianDpEvent(mechanism.noise))
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # of orders that don't converge: they are left out
    try:
        accountant.compose(event, steps)
    finally:
        logger.setLevel(level)
    # Steps that overflow differ from Poisson's with this chance in all; of each of two neighbours.
    chance = steps * mechanism.overflow
    spent = accountant.get_epsilon(delta / 2)
    lost = chance * (expm1(min(spent, 700)) + 2)
    if lost > delta / 2:
        raise ConfigError(
            f"train.privacy.accountant=rdp doesn't account for steps that draw more rows than "
            f"train.batch={mechanism.size} holds, once in {1 / mechanism.overflow:.2g}; take pld, "
            f"or a smaller train.privacy.expected"
        )
    return float(accountant.get_epsilon(delta - lost))


def solve_noise(
    mechanism: Mechanism, steps: int, target: float, delta: float, *, accountant: Kind = "pld"
) -> float:
    """Return the least noise multiplier, to a thousandth of epsilon, that keeps to `target`.

    Raises ConfigError where none up to 10,000 does.
    """

    def excess(noise: float) -> float:
        own, more = replace(mechanism, noise=noise), {"accountant": accountant, "interval": COARSE}
        try:
            return log(epsilon(own, steps, delta, **more) or 1e-9) - log(target)
        except ConfigError:  # of too little noise for rdp
            return 10.0

    low, high = 0.5, 1.0
    while excess(high) > 0:
        if high > MOST:
            raise ConfigError(
                f"epsilon={target} is not reached with any noise up to {MOST:g}; give a larger one "
                f"or fewer steps"
            )
        low, high = high, 2 * high
    while low > LEAST and excess(low) <= 0:
        low, high = low / 2, low
    # The higher end always keeps to the target; between two ends log epsilon is nearly a line.
    above, below = excess(low), excess(high)
    while below < log(1 - SOLVED) and high / low > 1 + 1e-7:
        share = min(max(above / (above - below) + SOLVED, 0.1), 0.95)
        middle = exp(log(low) + share * (log(high) - log(low)))
        value = excess(middle)
        low, above, high, below = (
            (middle, value, high, below) if value > 0 else (low, above, middle, value)
        )
    return high


def most_steps(
    mechanism: Mechanism, steps: int, target: float, delta: float, *, accountant: Kind = "pld"
) -> int:
    """Return how many of `steps` keep to the target."""
    more: Any = {"accountant": accountant, "interval": COARSE}
    spent = lambda n: epsilon(mechanism, n, delta, **more)  # noqa: E731
    if spent(steps) <= target:
        return steps
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) <= target else (low, middle)
    return low
