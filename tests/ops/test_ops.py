"""Norms, positions, masks, attention and gates against formulas in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.config_groups import Rope, RopeScaling
from jaxgen.errors import ConfigError
from jaxgen.ops import keys
from jaxgen.ops.attention.plain import attend, soft_cap
from jaxgen.ops.contract import contract, lookup
from jaxgen.ops.gates import ACTIVATIONS, GATED
from jaxgen.ops.masks import visible
from jaxgen.ops.norms import NORMS
from jaxgen.ops.positions import rotate, sinusoid

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", NORMS)
def test_norms_match_float64(name):
    x, scale, bias = normal(3, 8) * 100, normal(8), normal(8)
    found = NORMS[name](jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), epsilon=1e-5)
    y = x.astype(np.float64)
    y = y - y.mean(-1, keepdims=True) if name == "layer" else y
    scale = 1 + scale if name == "rms_offset" else scale
    wanted = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_norms_keep_the_dtype_but_compute_in_float32(name):
    x = jnp.asarray(normal(2, 64) * 300, jnp.bfloat16)
    ones = jnp.ones(64)
    found = NORMS[name](x, ones, None, epsilon=1e-5)
    wanted = NORMS[name](x.astype(jnp.float32), ones, None, epsilon=1e-5)
    assert found.dtype == jnp.bfloat16
    assert (found == wanted.astype(jnp.bfloat16)).all()


def test_rotation_turns_pairs_by_position_and_keeps_lengths():
    x, positions = normal(1, 3, 2, 8), np.array([[0, 1, 1000]])
    found = np.asarray(rotate(jnp.asarray(x), jnp.asarray(positions), Rope(theta=500.0)))
    for t, position in enumerate(positions[0]):
        for i in range(4):
            angle = position * 500.0 ** (-2 * i / 8)
            pair = x[0, t, :, i].astype(np.float64) + 1j * x[0, t, :, i + 4]
            turned = pair * np.exp(1j * angle)
            np.testing.assert_allclose(found[0, t, :, i], turned.real, atol=2e-4)
            np.testing.assert_allclose(found[0, t, :, i + 4], turned.imag, atol=2e-4)


def test_dynamic_scaling_grows_the_base_with_the_length_of_each_row():
    grown = RopeScaling(kind="dynamic", factor=3.0, original_context=10)
    x = jnp.asarray(normal(2, 2, 1, 8))
    positions = jnp.array([[2, 9], [2, 24]])
    found = rotate(x, positions, Rope(theta=500.0, scaling=grown))
    # Base times (factor * length / context - (factor - 1)) ^ (width / (width - 2)).
    base = 500.0 * (3.0 * 25 / 10 - 2.0) ** (8 / 6)
    for row, theta in ((0, 500.0), (1, base)):
        wanted = rotate(x[row : row + 1], positions[row : row + 1], Rope(theta=theta))
        np.testing.assert_allclose(found[row], wanted[0], atol=1e-5)


def test_a_scaling_takes_what_its_kind_reads():
    with pytest.raises(
        ConfigError, match=r"rope\.scaling\.low=2\.0 has no effect with kind=dynamic"
    ):
        RopeScaling(kind="dynamic", factor=2.0, original_context=8, low=2.0)
    with pytest.raises(ConfigError, match=r"original_context=None must be given with kind=dynamic"):
        RopeScaling(kind="dynamic", factor=2.0)
    with pytest.raises(ConfigError, match=r"attention=2\.0 has no effect with kind=llama3"):
        RopeScaling(kind="llama3", factor=2.0, original_context=8, attention=2.0)


def test_rotated_products_depend_on_distance_alone():
    q, k = jnp.asarray(normal(1, 1, 1, 16)), jnp.asarray(normal(1, 1, 1, 16))

    def product(a, b):
        turned = [rotate(x, jnp.array([[p]]), Rope()) for x, p in ((q, a), (k, b))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(8, 3), abs=1e-3)


def test_sinusoids_are_those_of_the_paper():
    found = sinusoid(jnp.array([[0, 5]]), 6)
    angles = 5 / 10000.0 ** (np.arange(3) / 3)
    np.testing.assert_allclose(found[0, 1], [*np.sin(angles), *np.cos(angles)], rtol=1e-5)
    np.testing.assert_allclose(found[0, 0], [0, 0, 0, 1, 1, 1])


def test_masks_are_causal_windowed_and_segmented():
    positions = jnp.array([[0, 1, 2, 0, 1]])
    segments = jnp.array([[1, 1, 1, 2, 2]])
    mask = visible(positions, positions, window=2, query_segments=segments, key_segments=segments)
    wanted = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert mask[0].astype(int).tolist() == wanted


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_attention_matches_a_loop_over_heads(heads, kv_heads, cap):
    q, k, v = normal(1, 3, heads, 5), normal(1, 4, kv_heads, 5), normal(1, 4, kv_heads, 5)
    mask = np.tril(np.ones((1, 3, 4), bool), 1)
    found = attend(*map(jnp.asarray, (q, k, v, mask)), scale=0.3, cap=cap)
    for n in range(heads):
        group = n // (heads // kv_heads)
        scores = q[0, :, n].astype(np.float64) @ k[0, :, group].T * 0.3
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        weights = np.exp(scores) * mask[0]
        wanted = weights / weights.sum(-1, keepdims=True) @ v[0, :, group]
        np.testing.assert_allclose(found[0, :, n], wanted, atol=2e-6)


def test_soft_cap_bounds_and_keeps_small_values():
    x = jnp.array([-100.0, 0.01, 100.0])
    np.testing.assert_allclose(soft_cap(x, 5.0), [-5, 0.01, 5], rtol=1e-4)
    assert soft_cap(x, None) is x


def test_gates_match_their_formulas():
    x = np.linspace(-4, 4, 9)
    sigmoid = 1 / (1 + np.exp(-x))
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    wanted = {"relu": np.maximum(x, 0), "silu": x * sigmoid, "gelu_tanh": tanh}
    for name, values in wanted.items():
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), values, atol=1e-6)
    exact = ACTIVATIONS["gelu"](jnp.asarray(x))
    assert 1e-5 < np.abs(exact - tanh).max() < 1e-3
    assert GATED["swiglu"] is ACTIVATIONS["silu"] and GATED["geglu"] is ACTIVATIONS["gelu_tanh"]


def test_products_run_in_the_dtype_that_is_asked_for():
    x, w = jnp.asarray(normal(1, 2, 4)), jnp.asarray(normal(4, 3))
    out = contract("BTD,DF->BTF", x, w, dtype="bfloat16")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(contract("BTD,DF->BTF", x, w, dtype="float32"), x @ w, atol=1e-5)
    assert lookup(w, jnp.array([[1, 3]]), dtype="bfloat16").dtype == jnp.bfloat16
    assert jax.numpy.array_equal(lookup(w, jnp.array([3]), dtype="float32")[0], w[3])


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_a_seed_makes_the_key_that_jax_makes_of_it_and_high_bits_count(seed):
    key, wanted = keys.from_seed(seed), jax.random.key(seed)
    assert key.dtype == wanted.dtype
    assert (jax.random.key_data(key) == jax.random.key_data(wanted)).all()
    for high in (2**32, 2**63):
        assert (jax.random.key_data(keys.from_seed(seed + high)) != jax.random.key_data(key)).any()
