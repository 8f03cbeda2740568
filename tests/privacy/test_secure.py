"""Secure sums: exact, whoever is lost, and of parts that say nothing alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from jaxgen.privacy import secure

LIMIT = 0.5


def parts(count, seed=0):
    draw = np.random.default_rng(seed)
    values = {"a": draw.normal(size=(count, 3, 2)) * 0.2, "b": draw.normal(size=(count, 5)) * 0.2}
    return {name: x.astype(np.float32) for name, x in values.items()}


def plain_sum(values, here, count):
    """The same sum by integers of Python, in no masks."""
    scale = 2 ** int(np.floor(np.log2((2**31 - 1) / (count * LIMIT))))
    words = np.round(np.clip(values.astype(np.float64), -LIMIT, LIMIT) * scale).astype(np.int64)
    return (words[here].sum(axis=0).astype(np.float32) / np.float32(scale)).astype(np.float32)


total = jax.jit(lambda p, here, key: secure.secure_total(p, here, key, LIMIT))


@pytest.mark.parametrize(
    ("count", "lost"), [(100, []), (100, [0, 3, 50, 99]), (5, [1, 4]), (4, [2])]
)
def test_the_masked_sum_is_the_plain_one_exactly_whoever_is_lost(count, lost):
    values, here = parts(count), ~np.isin(np.arange(count), lost)
    found = total(values, jnp.asarray(here), jax.random.key(1))
    for name, x in values.items():
        np.testing.assert_array_equal(found[name], plain_sum(x, here, count))


def test_of_too_few_clients_nothing_is_unmasked():
    found = total(parts(4), jnp.array([True, True, False, False]), jax.random.key(1))
    assert not any(np.asarray(x).any() for x in found.values())


def test_a_masked_part_is_as_good_as_random_and_masks_cancel_in_the_sum():
    secrets = jax.random.randint(jax.random.key(2), (6, 4), 1, secure.PRIME).astype(jnp.uint32)
    others = ~jnp.eye(6, dtype=bool)
    masks = np.asarray(secure.masks(secrets, secrets, others, 4000))
    assert not masks.sum(axis=0, dtype=np.uint32).any()
    for one in masks:
        counts = np.bincount(one >> 28, minlength=16)
        assert 1e-4 < chi2.cdf(((counts - 250) ** 2 / 250).sum(), 15) < 1 - 1e-4
    # Another secret of one client changes its masks with all.
    moved = np.asarray(secure.masks(secrets.at[0, 0].add(1), secrets, others, 4000))
    assert (moved[0] != masks[0]).mean() > 0.99


def test_more_than_half_of_the_shares_give_a_secret_back_and_fewer_say_nothing():
    secrets = jax.random.randint(jax.random.key(3), (7, 4), 0, secure.PRIME).astype(jnp.uint32)
    shares = secure.deal_shares(secrets, jax.random.key(4))
    for lost in ([], [0, 1, 2], [2, 5, 6]):
        here = jnp.asarray(~np.isin(np.arange(7), lost))
        np.testing.assert_array_equal(secure.recover(shares, here), secrets)
    # Three shares: a polynomial through them takes any secret at 0.
    wrong = shares.at[3].add(1) % secure.PRIME
    assert (np.asarray(secure.recover(wrong, jnp.ones(7, bool))) != secrets).all()
