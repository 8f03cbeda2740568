"""Epsilon is dp-accounting's own, of the sampling that runs."""

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy.stats import norm

from jaxgen.errors import ConfigError
from jaxgen.privacy import accountant
from jaxgen.privacy.accountant import Mechanism

INTERVAL = 5e-3  # of privacy losses: what is compared is computed sooner by a larger one
CASES = [
    (noise, population, size, steps)
    for noise in (0.7, 1.3)
    for population, size in ((200, 60), (200, 200), (5_000, 16), (50_000, 300), (7, 7))
    for steps in (1, 37)
]  # 20 of them


def mechanism(noise, population, size):
    return Mechanism(
        noise, accountant.largest_expected(population, size) / population, population, size
    )


@pytest.mark.parametrize(("noise", "population", "size", "steps"), CASES)
def test_epsilon_is_what_dp_accounting_says_of_truncated_poisson_steps(
    noise, population, size, steps
):
    own = mechanism(noise, population, size)
    event = dp.TruncatedSubsampledGaussianDpEvent(population, own.rate, size, noise)
    by_hand = pld.PLDAccountant(value_discretization_interval=INTERVAL).compose(event, steps)
    spent = accountant.epsilon(own, steps, 1e-6, interval=INTERVAL)
    assert spent == pytest.approx(by_hand.get_epsilon(1e-6), abs=1e-6)


def test_rdp_is_dp_accountings_and_pays_for_steps_that_overflow():
    own = Mechanism(1.1, 0.01, 5_000, 200)
    event = dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.1))
    by_hand = rdp.RdpAccountant().compose(event, 50).get_epsilon(1e-5)
    spent = accountant.epsilon(own, 50, 1e-5, accountant="rdp")
    assert spent == pytest.approx(by_hand, abs=1e-6)
    assert spent > accountant.epsilon(own, 50, 1e-5, interval=1e-3)
    with pytest.raises(ConfigError, match="take pld"):
        accountant.epsilon(Mechanism(1.1, 0.01, 5_000, 55), 50, 1e-5, accountant="rdp")


@pytest.mark.parametrize(("target", "kind"), [(0.5, "pld"), (8.0, "pld"), (3.0, "rdp")])
def test_the_noise_that_is_solved_for_just_keeps_to_epsilon(target, kind, monkeypatch):
    monkeypatch.setattr(accountant, "COARSE", INTERVAL)
    expected = accountant.largest_expected(2_000, 64, accountant=kind)
    own = Mechanism(1.0, expected / 2_000, 2_000, 64)
    noise = accountant.solve_noise(own, 100, target, 1e-6, accountant=kind)
    more = {"accountant": kind, "interval": INTERVAL}
    at = lambda noise: accountant.epsilon(Mechanism(noise, own.rate, 2_000, 64), 100, 1e-6, **more)  # noqa: E731
    assert 0.99 * target < at(noise) <= target < at(0.98 * noise)
    solved = Mechanism(noise, own.rate, 2_000, 64)
    steps = accountant.most_steps(solved, 150, target, 1e-6, accountant=kind)
    assert 100 <= steps < 103


def test_a_batch_holds_more_than_is_expected_and_rarely_overflows():
    expected = accountant.largest_expected(1_000, 64)
    assert Mechanism(1.0, expected / 1_000, 1_000, 64).overflow == pytest.approx(1e-6, rel=1e-3)
    assert accountant.largest_expected(10, 64) == 5


def test_what_is_unlikely_without_a_unit_is_as_likely_with_it_as_the_noise_allows():
    """Of one step of all units: the best test of N(0, noise) against N(1, noise)."""
    chances = np.array([1.0, 0.3, 0.01, 1e-6])
    found = accountant.largest_chance(Mechanism(0.5, 1.0, 40, 40), 1, chances)
    assert found == pytest.approx(norm.cdf(norm.ppf(chances) + 2.0), rel=5e-3)
