"""The cutoff of a row's largest values: both methods, and adding one by one as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.decoding import top_mass
from jaxgen.decoding.processors.truncation import top_k, top_p
from jaxgen.ops.cpu.radix_select import radix_select

ROWS = np.float32(
    [
        [0.0, -0.0, 1.5, -2.0, 1.5, np.inf, -np.inf, 1e-38],
        [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0],
        [-1e30, 1e30, -5.0, 5.0, 0.25, -0.25, 1e-45, -1e-45],
    ]
)
WEIGHTS = {
    "ones": lambda x: jnp.ones(x.shape, jnp.int32),
    "by value": lambda x: (x > 0).astype(jnp.int32) * 5 + (x > 1).astype(jnp.int32) * 7,
}


def one_by_one(row, weights, need):
    found = 0
    for value, weight in sorted(zip(row.tolist(), weights.tolist(), strict=True), reverse=True):
        found += weight
        if found >= need:
            return value
    raise AssertionError("a row that does not reach what is needed")


@pytest.mark.parametrize("way", [radix_select, top_mass.sort_select])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_cutoff_is_that_of_adding_up_one_by_one(way, name):
    weights = np.asarray(WEIGHTS[name](jnp.asarray(ROWS)))
    for need in (1, 2, 5, 6, 8):
        found = jax.jit(way, static_argnums=1)(ROWS, WEIGHTS[name], jnp.full((3, 1), need))
        for row, weight, ours in zip(ROWS, weights, found[:, 0], strict=True):
            assert ours == one_by_one(row, weight, need), need


@pytest.mark.parametrize("way", [radix_select, top_mass.sort_select])
def test_nan_counts_as_the_largest(way):
    row = jnp.float32([[1.0, -jnp.nan, 2.0, jnp.nan]])
    ends = [way(row, WEIGHTS["ones"], jnp.full((1, 1), need))[0, 0] for need in (2, 3, 4)]
    assert jnp.isnan(ends[0]) and ends[1:] == [2.0, 1.0]


@pytest.mark.parametrize("make", [top_k, top_p])
def test_samplers_keep_the_same_by_either_way(make, monkeypatch):
    draw = np.random.default_rng(1)
    logits = jnp.asarray(np.round(draw.normal(size=(64, 300)) * 3, 1), jnp.float32)  # many ties
    values = draw.integers(1, 300, 64) if make is top_k else draw.uniform(0.01, 1, 64)
    kept = []
    for way in (radix_select, top_mass.sort_select):
        monkeypatch.setattr(top_mass, "mass_cutoff", way)
        kept.append(np.isfinite(make(jnp.asarray(values))(logits)))
    np.testing.assert_array_equal(*kept)


def test_a_nucleus_is_the_smallest_set_that_reaches_its_mass():
    draw = np.random.default_rng(2)
    logits = (draw.normal(size=(200, 50)) * 2).astype(np.float32)
    mass = draw.uniform(0.05, 0.99, 200).astype(np.float32)
    kept = np.isfinite(top_p(jnp.asarray(mass))(jnp.asarray(logits)))
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    for row, share, mine in zip(probs, mass, kept, strict=True):
        order = np.argsort(-row)
        before = np.cumsum(row[order]) - row[order]
        assert np.abs(before - share).min() > 1e-6, "a draw too near to the edge to tell"
        assert set(np.flatnonzero(mine)) == set(order[before < share])


@pytest.mark.parametrize(("mass", "wanted"), [(1e-9, [1, 0, 0]), (1.0, [1, 1, 1])])
def test_the_least_mass_keeps_the_likeliest_and_all_of_it_every_token(mass, wanted):
    logits = jnp.float32([[100.0, 0.0, -1.0]])  # all but one weigh nothing
    np.testing.assert_array_equal(np.isfinite(top_p(mass)(logits))[0], wanted)
