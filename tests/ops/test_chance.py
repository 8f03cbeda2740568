"""What dropout keeps is what jax.random.bernoulli draws, bit for bit."""

import jax
import jax.numpy as jnp
import pytest

from jaxgen.ops import chance
from jaxgen.ops.chance import Chance

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("shape", "keep"),
    [((33, 7), 0.7), ((4, 3, 2, 5, 6), 0.1), ((4097,), 1 - 2**-12)],
)
def test_elements_drawn_by_their_index_match_bernoulli(shape, keep):
    wanted = jax.random.bernoulli(KEY, keep, shape)
    whole = Chance(KEY, keep, 0, shape[0])
    assert chance.indexed(whole, shape)
    assert (chance.kept(whole, shape) == wanted).all()
    half = shape[0] // 2  # the rows of one of two devices
    rest = chance.kept(whole._replace(first=half), (shape[0] - half, *shape[1:]))
    assert (rest == wanted[half:]).all()
    x = jnp.arange(1.0, 1 + wanted.size).reshape(shape)
    assert (chance.drop(x, whole) == jnp.where(wanted, x / keep, 0)).all()


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_other_generators_draw_the_whole_batch(impl):
    key = jax.random.key(3, impl=impl)
    with jax.threefry_partitionable(False):
        whole = Chance(key, 0.6, 1, 4)
        assert not chance.indexed(whole, (4, 5))
        wanted = jax.random.bernoulli(key, 0.6, (4, 5))
        assert (chance.kept(whole, (2, 5)) == wanted[1:3]).all()
    assert chance.indexed(whole, (4, 5)) == (impl == "threefry2x32")


def test_indices_that_do_not_fit_32_bits_are_not_drawn_alone():
    whole = Chance(KEY, 0.6, 0, 2**16)
    assert chance.indexed(whole, (2**16, 2**16 - 1))
    assert not chance.indexed(whole, (2**16, 2**16))
