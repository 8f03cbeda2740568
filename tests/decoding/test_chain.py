"""Samplers against exact probabilities, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgen
from jaxgen import chain, errors, temperature, top_k, top_p
from jaxgen.decoding.chain import greedy
from jaxgen.ops.cpu.radix_select import radix_select

LOGITS = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))


processed = jax.jit(lambda processor, logits: processor(logits))


def probabilities(logits):
    return np.asarray(jax.nn.softmax(logits, axis=-1))[0]


@pytest.mark.parametrize(
    ("processors", "wanted"),
    [
        ([], [0.4, 0.3, 0.2, 0.1]),
        ([temperature(0.5)], [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ([top_k(2)], [4 / 7, 3 / 7, 0, 0]),
        ([top_p(0.7)], [4 / 7, 3 / 7, 0, 0]),
        ([top_p(0.71)], [4 / 9, 3 / 9, 2 / 9, 0]),
        ([top_p(1e-9)], [1, 0, 0, 0]),
        ([top_p(1.0)], [0.4, 0.3, 0.2, 0.1]),
        ([top_k(99)], [0.4, 0.3, 0.2, 0.1]),
        ([temperature(0.0)], [1, 0, 0, 0]),
        # The order that is written is the order that acts: 16/30 reaches 0.5, 0.4 does not.
        ([temperature(0.5), top_p(0.5)], [1, 0, 0, 0]),
        ([top_p(0.5), temperature(0.5)], [16 / 25, 9 / 25, 0, 0]),
    ],
)
def test_chains_give_the_exact_distribution(processors, wanted):
    found = probabilities(chain(*processors).process(LOGITS))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "processors", [[temperature(1.3)], [top_k(5)], [top_p(0.8)], [temperature(0.7), top_p(0.9)]]
)
def test_a_hundred_thousand_draws_pass_a_chi_square(processors):
    sample, logits = chain(*processors), jax.random.normal(jax.random.key(1), (1, 12)) * 2
    wanted = probabilities(sample.process(logits))
    draws = 100_000
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = jax.jit(sample)(jnp.broadcast_to(logits, (draws, 12)), keys)
    counts = np.bincount(tokens, minlength=12)
    assert not counts[wanted == 0].any()
    likely = wanted > 0
    statistic = ((counts - draws * wanted)[likely] ** 2 / (draws * wanted[likely])).sum()
    # P(chi2 with 11 degrees of freedom > 37.4) is 1e-4.
    assert statistic < 37.4


def test_settings_may_differ_by_request():
    logits = jnp.broadcast_to(LOGITS, (3, 4))
    sample = chain(temperature(jnp.array([1.0, 0.0, 1.0])), top_k(jnp.array([1, 4, 4])))
    kept = np.isfinite(sample.process(logits)).sum(-1)
    assert kept.tolist() == [1, 1, 4]


def test_a_changed_setting_does_not_recompile():
    traces = []

    @jax.jit
    def process(sample, logits):
        traces.append(1)
        return sample.process(logits)

    for value, mass in ((0.7, 0.9), (1.1, 0.5), (0.0, 0.2)):
        process(chain(temperature(value), top_p(mass)), LOGITS)
    assert len(traces) == 1


def test_greedy_takes_the_first_of_equals():
    logits = jnp.array([[1.0, 3.0, 3.0, 2.0]])
    for seed in range(5):
        assert greedy()(logits, jax.random.split(jax.random.key(seed), 1)).tolist() == [1]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_bad_temperature_is_refused(value):
    with pytest.raises(errors.ConfigError, match=f"temperature: value={value}"):
        temperature(value)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.01, float("nan")])
def test_a_bad_top_p_is_refused(value):
    with pytest.raises(errors.ConfigError, match=f"top_p: mass={value}"):
        top_p(value)


@pytest.mark.parametrize("value", [0, -3, 1.5])
def test_a_bad_top_k_is_refused(value):
    with pytest.raises(errors.ConfigError, match=f"top_k: count={value}"):
        top_k(value)


# XLA on a CPU takes subnormal numbers for 0.
normal = st.floats(-30, 30, width=32, allow_subnormal=False)
rows = st.lists(normal, min_size=6, max_size=6)


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(1, 6), st.floats(0.0625, 1.0, width=32))
def test_what_is_kept_is_never_less_likely_than_what_is_dropped(values, count, mass):
    logits = np.asarray([values], np.float32)
    for processor in (top_k(count), top_p(mass)):
        kept = np.isfinite(processed(processor, logits))[0]
        assert kept.any()
        if not kept.all():
            assert logits[0][kept].min() >= logits[0][~kept].max()
    probs = probabilities(logits)
    kept = np.isfinite(processed(top_p(mass), logits))[0]
    assert probs[kept].sum() >= mass - 1e-5
    # The smallest set that reaches it: without its last token it falls short.
    assert kept.sum() == 1 or mass == 1 or probs[kept].sum() - probs[kept].min() < mass + 1e-5
    assert np.isfinite(processed(top_k(count), logits)).sum() >= count


def test_processors_of_different_kinds_are_different_trees():
    # jit tells compiled programs apart by this; equal ones ran each other's program now and then.
    kinds = [jaxgen.eta(0.1), jaxgen.epsilon(0.1), jaxgen.top_p(0.1), jaxgen.typical(0.1)]
    structures = {jax.tree.structure(kind) for kind in kinds}
    assert len(structures) == 4
    for kind in kinds:
        again = jax.tree.unflatten(jax.tree.structure(kind), jax.tree.leaves(kind))
        assert again == kind


def one_each(x):
    return jnp.ones(x.shape, jnp.int32)


def test_places_in_a_sorted_row_are_found_without_sorting_and_the_nucleus_is_that_of_sorted_ids():
    rng = np.random.default_rng(0)
    rows = np.stack([
        rng.normal(size=40) * 3,
        rng.integers(-2, 3, 40),  # many equal ones, on the border as well
        np.where(rng.random(40) < 0.5, -np.inf, rng.normal(size=40)),
        np.where(np.arange(40) == 5, np.nan, -np.arange(40)),
    ])  # fmt: skip
    logits = jnp.asarray(rows, jnp.float32).at[1, 3].set(-0.0).at[1, 4].set(0.0)
    wanted = jnp.sort(logits, axis=-1, descending=True)
    halving = jax.jit(lambda need: radix_select(logits, one_each, need))
    for place in range(40):
        found = halving(jnp.full((len(rows), 1), place + 1))
        np.testing.assert_array_equal(found[:, 0], wanted[:, place])
    for mass in (0.5, 0.95):
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
        tail = jax.lax.cumsum(probs, axis=1, reverse=True)
        dropped = (tail <= 1 - mass) & (jnp.arange(40) >= 1) & (mass < 1)
        kept = ~jnp.take_along_axis(dropped, jnp.argsort(order, axis=-1), -1)
        nucleus = top_p(mass)(logits)
        np.testing.assert_array_equal(nucleus, jnp.where(kept, logits, -jnp.inf))
