"""Caches against the plain one: a ring under its window, int8 within its rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.models import api
from jaxgen.ops import cache as caches

SIZES = caches.Sizes(batch=2, heads=1, width=1, dtype="float32")


def row(*numbers):
    return jnp.array(numbers, jnp.float32)[..., None, None]


def test_a_cache_writes_each_row_at_its_own_length():
    cache = caches.empty(SIZES, full=(2, 5)).rewind(jnp.array([0, 2]))
    new = row([1.0, 2.0], [3.0, 4.0])
    cache, k, v = caches.extend(cache, 1, new, -new, window=False)
    cache = caches.advance(cache, 2)
    assert k[..., 0, 0].tolist() == [[1, 2, 0, 0, 0], [0, 0, 3, 4, 0]]
    assert v[..., 0, 0].tolist() == [[-1, -2, 0, 0, 0], [0, 0, -3, -4, 0]]
    assert not cache.full.k[0].any() and cache.length.tolist() == [2, 4]


@pytest.mark.parametrize("pieces", [[4, 1, 1, 3], [2, 7]])
def test_a_ring_gives_every_query_its_window(pieces):
    """Keys are their positions, so what a query sees can be read off."""
    window = 3
    cache = caches.empty(SIZES, full=(0, 0), sliding=(1, window))
    at = 0
    for count in pieces:
        new = jnp.tile(jnp.arange(at, at + count, dtype=jnp.float32), (2, 1))[..., None, None]
        known = np.asarray(caches.positions(cache, count, window=True))
        cache, keys, _ = caches.extend(cache, 0, new, new, window=True)
        cache, keys = caches.advance(cache, count), np.asarray(keys)
        for place in range(at, at + count):
            seen = (known[0] <= place) & (known[0] > place - window)
            wanted = list(range(max(0, place - window + 1), place + 1))
            assert sorted(keys[0, :, 0, 0][seen].tolist()) == wanted
            assert sorted(known[0][seen].tolist()) == wanted
        at += count
    assert cache.sliding.count == window and cache.length.tolist() == [9, 9]


def test_padding_drives_nothing_out_of_a_ring():
    cache = caches.empty(SIZES, full=(0, 0), sliding=(1, 4)).with_valid_lengths(jnp.array([2, 6]))
    new = jnp.tile(jnp.arange(1.0, 8.0), (2, 1))[..., None, None]
    cache = caches.advance(caches.extend(cache, 0, new, new, window=True)[0], 7)
    assert cache.length.tolist() == [2, 6] and cache.num_valid is None
    assert cache.sliding.k[0, :, 0, :, 0].tolist() == [[1, 2, 0, 0], [5, 6, 3, 4]]


LOCAL = {"pattern": ("local",), "window": 5}
MIXED = {"pattern": ("local", "global"), "window": 5}
BASE = jaxgen.ModelConfig(
    vocab_size=23, context=64, layers=3, d_model=16, heads=4, kv_heads=2, init_std=0.5,
    norm="rms", biases="none", positions="rope",
)  # fmt: skip
LATENT = {
    "kv_heads": None,
    "latent": jaxgen.Latent(kv_rank=10, rope_width=4, plain_width=6, value_width=5),
}
PROMPT = jnp.asarray(np.random.default_rng(0).integers(0, 23, (3, 14)))
LENGTHS = jnp.array([14, 3, 9])


generate = jax.jit(jaxgen.generate, static_argnames=("config", "length", "layout", "store"))


@pytest.mark.parametrize("changes", [{}, LATENT])
def test_rings_beside_whole_layers_make_the_tokens_of_the_whole_cache(changes):
    config = BASE.replace(**MIXED, **changes)
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(1))
    sample = jaxgen.chain(jaxgen.temperature(1.0))
    given = {"length": 16, "sample": sample, "lengths": LENGTHS}
    wanted = generate(params, config, PROMPT, jax.random.key(0), **given)
    found = generate(params, config, PROMPT, jax.random.key(0), layout="ring", **given)
    assert found.tolist() == wanted.tolist()


def size(cache):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def bytes_of(config, capacity, batch=3, **how):
    return size(api.empty_cache(config, batch, capacity, **how))


def test_bytes_are_those_of_the_key_heads_and_a_ring_does_not_grow():
    batch, slots, lengths = 3, 100, 3 * 4  # lengths: an int32 a row
    each = 2 * 4 * batch * config_numbers(BASE) * slots  # k and v, float32
    assert bytes_of(BASE, slots) == each + lengths
    assert bytes_of(BASE.replace(kv_heads=4), slots) == 2 * each + lengths
    int8 = each // 4 + 2 * 4 * batch * BASE.layers * BASE.K * slots
    assert bytes_of(BASE, slots, store="int8") == int8 + lengths
    local, mixed = BASE.replace(**LOCAL), BASE.replace(**MIXED)
    ring = 2 * 4 * batch * config_numbers(local) * 5
    assert bytes_of(local, slots, layout="ring") == ring + lengths
    assert bytes_of(local, 10 * slots, layout="ring") == ring + lengths
    # Of three layers the second alone is global.
    part = 2 * 4 * batch * BASE.K * BASE.H * (1 * slots + 2 * 5)
    assert bytes_of(mixed, slots, layout="ring") == part + lengths
    # A token's latent and its rotated key serve all heads.
    latents = 4 * batch * BASE.layers * (10 + 4) * slots
    assert bytes_of(BASE.replace(**LATENT), slots) == latents + lengths


def config_numbers(config):
    return config.layers * config.K * config.H


def test_int8_rounds_each_head_and_position_to_its_own_scale():
    sizes = caches.Sizes(2, 3, 8, "float32")
    k = jax.random.normal(jax.random.key(0), (2, 5, 3, 8)) * jnp.array([0.01, 1, 100])[:, None]
    cache = caches.empty(sizes, full=(1, 6), store="int8")
    cache, keys, values = caches.extend(cache, 0, k, -k, window=False)
    largest = jnp.max(jnp.abs(k), axis=-1, keepdims=True)
    error = jnp.abs(keys[:, :5] - k) / largest
    assert 1 / 600 < error.max() <= 0.5 / 127 + 1e-6
    np.testing.assert_array_equal(values, -keys)
    zero = caches.extend(cache, 0, 0 * k, 0 * k, window=False)[1]
    assert not jnp.isnan(zero).any() and (zero[:, :5] == 0).all()


# The numbers of a latent, which serve all heads, share one scale.
@pytest.mark.parametrize(("changes", "most"), [({}, 0.05), (LATENT, 0.15)])
def test_logits_over_an_int8_cache_stay_near(changes, most):
    config = BASE.replace(**MIXED, **changes)
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(1))
    apply = jax.jit(jaxgen.apply, static_argnums=1)
    whole = apply(params, config, PROMPT).logits
    cache = api.empty_cache(config, 3, 20, layout="ring", store="int8")
    first = apply(params, config, PROMPT[:, :12], cache=cache)
    second = apply(params, config, PROMPT[:, 12:13], cache=first.cache)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(second.cache)} == {
        *("int8", "float32", "int32")
    }
    logits = jnp.concatenate([first.logits, second.logits], axis=1)
    error = jnp.abs(logits - whole[:, :13]).max() / jnp.std(whole)
    assert 1e-4 < error < most


@pytest.mark.parametrize(
    ("config", "how", "text"),
    [
        (BASE, {"layout": "ring"}, "layout=ring with window=None"),
        (BASE, {"slack": 3}, "slack=3 has no effect with layout=contiguous"),
        (
            BASE.replace(positions="relative", **LOCAL),
            {"layout": "ring"},
            "layout=ring with positions=relative",
        ),
    ],
)
def test_caches_that_contradict_the_model_are_refused(config, how, text):
    with pytest.raises(errors.ConfigError, match=text):
        api.empty_cache(config, 1, 8, **how)
