"""Attacks on scores: exposure, membership and the lower bound of epsilon."""

import numpy as np
import pytest

from jaxgen.audit import attacks
from jaxgen.errors import ConfigError


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_exposure_is_of_the_rank_and_of_chance_without_memory():
    others = np.arange(1023.0)
    bits = attacks.exposure(np.array([2000.0, 511.5, -1.0, 1022.0]), others)
    # A tie with the best of the others is the second rank.
    assert bits == pytest.approx([10, 1, 0, 9])
    assert attacks.exposure(normal(0, 4000), normal(1, 4000)).mean() == pytest.approx(1.44, abs=0.1)


def test_the_area_is_the_share_of_pairs_in_order_and_its_interval_covers():
    members, others = np.round(normal(2, 60) + 1, 1), np.round(normal(3, 80), 1)  # with ties
    won = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    found = attacks.attack(members, others)
    assert found["auc"].value == pytest.approx(won.mean())
    true, inside = 0.760250, 0  # P(N(1, 1) > N(0, 1))
    for seed in range(200):
        low, high = attacks.attack(normal(seed, 60) + 1, normal(seed + 999, 80))["auc"][1:]
        inside += low <= true <= high
    assert 180 <= inside <= 198


def test_rates_count_members_above_all_but_so_many_others():
    found = attacks.attack(np.array([5.0, 3.5, 0.0, 9.0]), np.arange(10.0))
    assert found["tpr_at_0.01"].value == 0.0  # none is above 9
    assert found["tpr_at_0.1"].value == 0.25  # one false alarm is allowed: above 8
    assert found["tpr_at_0.1"].low == pytest.approx(0.0063, abs=1e-4)  # Clopper-Pearson, 1 of 4
    assert found["tpr_at_0.1"].high == pytest.approx(0.8059, abs=1e-4)


@pytest.mark.parametrize("shadows", [8, 64])
def test_likelihood_ratios_tell_what_a_threshold_can_not(shadows):
    """Texts differ in how hard they are by far more than membership moves their scores."""
    texts = 400
    hard, inside = 10 * normal(4, texts), normal(5, shadows, texts) > 0
    inside[0], inside[1] = True, False  # each is in some, and out of some
    member = normal(6, texts) > 0
    scores = hard + member + 0.5 * normal(7, texts)
    models = hard + inside + 0.5 * normal(8, shadows, texts)
    ratios = attacks.likelihood_ratios(scores, models, inside)
    assert attacks.attack(scores[member], scores[~member])["auc"].value < 0.65
    assert attacks.attack(ratios[member], ratios[~member])["auc"].value > 0.85
    if shadows == 64:  # the ratio itself, of one text
        i = 5
        a, b = models[inside[:, i], i], models[~inside[:, i], i]
        logs = [-((scores[i] - x.mean()) ** 2) / (2 * x.var(ddof=1)) - np.log(x.std(ddof=1))
                for x in (a, b)]  # fmt: skip
        assert ratios[i] == pytest.approx(logs[0] - logs[1])


def test_a_text_that_no_shadow_has_or_all_have_is_refused():
    with pytest.raises(ConfigError, match="shadows=2: a text is left out of the text of none"):
        attacks.likelihood_ratios(normal(0, 3), normal(1, 2, 3), np.ones((2, 3), bool))


def test_the_bound_of_perfect_guesses_is_that_of_the_paper():
    """Without delta: all of r guesses right gives the epsilon where expit(epsilon)^r = chance."""
    planted = np.arange(100) < 50
    found = attacks.epsilon_bound(np.where(planted, 1.0, 0.0), planted, 0.0)
    share = 0.05 / len(attacks.SHARES)
    expected = np.log(share ** (1 / 100) / (1 - share ** (1 / 100)))
    assert found.guesses == found.right == 100
    assert found.epsilon == pytest.approx(expected, abs=1e-4)


def test_the_chance_of_right_guesses_is_that_of_a_sum_by_hand():
    # Steinke et al. 2023, appendix D: m=3, r=3, v=2, eps=ln 3 (0.75 right), delta=0.01.
    tail, at_1, at_0 = 0.75**3 + 3 * 0.75**2 * 0.25, 3 * 0.75 * 0.25**2, 0.25**3
    expected = tail + 2 * 3 * 0.01 * max(at_1, (at_1 + at_0) / 2)
    assert attacks.likelihood(3, 3, 2, np.log(3), 0.01) == pytest.approx(expected)


def test_the_bound_holds_for_randomised_response_of_that_epsilon():
    """Coins that are told rightly with the chance that epsilon allows: no bound is above it."""
    epsilon, wrong = 2.0, 0
    for seed in range(60):
        planted = normal(seed, 200) > 0
        right = np.random.default_rng(seed + 5000).random(200) < 1 / (1 + np.exp(-epsilon))
        scores = np.where(planted == right, 1.0, -1.0) + 1e-3 * normal(seed + 9000, 200)
        wrong += attacks.epsilon_bound(scores, planted, 1e-6).epsilon > epsilon
    assert wrong <= 6  # of the 5 % that may be
    assert attacks.epsilon_bound(scores, planted, 1e-6).epsilon > 0.8
