"""What is drawn by index is what jax.random draws, bit for bit."""

import jax
import jax.numpy as jnp
import pytest

from jaxgen.ops import random
from jaxgen.ops.cpu import threefry
from jaxgen.ops.random import DropoutRng

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("shape", "keep"),
    [((33, 7), 0.7), ((4, 3, 2, 5, 6), 0.1), ((4097,), 1 - 2**-12)],
)
def test_elements_drawn_by_their_index_match_bernoulli(shape, keep):
    wanted = jax.random.bernoulli(KEY, keep, shape)
    whole = DropoutRng(KEY, keep, 0, shape[0])
    assert random.is_indexable(whole, shape)
    assert (random.keep_mask(whole, shape) == wanted).all()
    half = shape[0] // 2  # the rows of one of two devices
    rest = random.keep_mask(whole._replace(first=half), (shape[0] - half, *shape[1:]))
    assert (rest == wanted[half:]).all()
    x = jnp.arange(1.0, 1 + wanted.size).reshape(shape)
    assert (random.dropout(x, whole) == jnp.where(wanted, x / keep, 0)).all()


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_other_generators_draw_the_whole_batch(impl):
    key = jax.random.key(3, impl=impl)
    with jax.threefry_partitionable(False):
        whole = DropoutRng(key, 0.6, 1, 4)
        assert not random.is_indexable(whole, (4, 5))
        wanted = jax.random.bernoulli(key, 0.6, (4, 5))
        assert (random.keep_mask(whole, (2, 5)) == wanted[1:3]).all()
    assert random.is_indexable(whole, (4, 5)) == (impl == "threefry2x32")


def test_indices_that_do_not_fit_32_bits_are_not_drawn_alone():
    whole = DropoutRng(KEY, 0.6, 0, 2**16)
    assert random.is_indexable(whole, (2**16, 2**16 - 1))
    assert not random.is_indexable(whole, (2**16, 2**16))


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_noise_drawn_by_index_is_that_of_gumbel_and_picks_what_categorical_does(impl):
    keys = jax.random.split(jax.random.key(5, impl=impl), 3)
    wanted = jax.vmap(lambda key: jax.random.gumbel(key, (4097,)))(keys)
    assert (jax.jit(random.gumbel, static_argnums=1)(keys, 4097) == wanted).all()
    logits = jax.random.normal(KEY, (3, 4097))
    picked = jax.jit(random.categorical)(keys, logits)
    assert (picked == jax.vmap(jax.random.categorical)(keys, logits)).all()


def test_a_draw_of_zero_is_noise_of_the_least_number(monkeypatch):
    monkeypatch.setattr(threefry, "_bits", lambda key, index: index * 0 + jnp.uint32(511))
    least = -jnp.log(-jnp.log(jnp.finfo(jnp.float32).tiny))
    assert (random.gumbel(jax.random.split(KEY, 2), 11) == least).all()


def test_noise_of_a_wider_range_is_left_to_jax():
    wanted = jax.random.gumbel(KEY, (99,), mode="high")
    assert (random.gumbel(KEY[None], 99) != wanted).any()
    jax.config.update("jax_high_dynamic_range_gumbel", True)
    try:
        assert (random.gumbel(KEY[None], 99) == wanted).all()
    finally:
        jax.config.update("jax_high_dynamic_range_gumbel", False)
