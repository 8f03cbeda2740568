"""Weights of four bits: what they are rounded to, and what is multiplied and kept with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops.contract import contract
from jaxgen.ops.int4 import BLOCK, VALUES, Int4

EQUATIONS = {"BTD,DNH->BTNH": ((96, 2, 5), 1), "BTNH,NHD->BTD": ((4, 32, 6), 2)}


def drawn(shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), "float32")


def rounded(rows):
    """The nearest value of NF4 for each number of [O, I], by the scales of its blocks."""
    rows = np.asarray(rows)
    wide = np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK))).reshape(len(rows), -1, BLOCK)
    most = np.abs(wide).max(axis=-1)
    largest = most.max(axis=-1, keepdims=True)
    scale = (np.ceil(most / largest * 255) * (largest / 255)).astype(np.float32)[..., None]
    nearest = np.abs(wide[..., None] / scale[..., None] - VALUES).argmin(axis=-1)
    return (VALUES[nearest] * scale).reshape(len(rows), -1)[:, : rows.shape[1]]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_products_are_those_of_the_nearest_values(equation):
    shape, inner = EQUATIONS[equation]
    w, x = drawn(shape), drawn((2, 3, *shape[:inner]), 2)
    leaf = Int4.of(w, inner)
    count = int(np.prod(shape[:inner]))
    plain = rounded(w.reshape(count, -1).T).T.reshape(shape)
    assert leaf.out_axes == shape[inner:] and not hasattr(leaf, "shape")
    assert 0.01 < np.abs(plain - w).mean() < 0.1
    found = contract(equation, x, leaf, dtype="float32")
    np.testing.assert_allclose(found, np.einsum(equation, x, plain), atol=1e-4)
    half = contract(equation, x, leaf, dtype="bfloat16")
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype("float32"), found, atol=0.5)


def test_zeros_stay_zeros_and_a_number_takes_little_more_than_four_bits():
    leaf = Int4.of(drawn((1024, 8)).at[:, 3].set(0.0).at[:64].set(0.0), 1)
    found = contract("BTD,DF->BTF", jnp.eye(1024)[None], leaf, dtype="float32")[0]
    assert not np.any(found[:, 3]) and not np.any(found[:64])
    assert sum(x.nbytes for x in jax.tree.leaves(leaf)) * 8 / (1024 * 8) < 4.17


def test_joined_weights_are_cut_apart_again():
    one, other = Int4.of(drawn((64, 2, 3)), 1), Int4.of(drawn((64, 5), 2), 1)
    both = Int4.join([one, other])
    for leaf, begin in ((one, 0), (other, 6)):
        again = both.cut(begin, leaf.out_axes)
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_widened_weight_is_not_kept_for_the_gradient():
    leaf, x = Int4.of(drawn((128, 96)), 1), drawn((1, 2, 128))

    def product(x, leaf):
        return contract("BTD,DF->BTF", x, leaf, dtype="float32")

    _, backward = jax.vjp(lambda x: product(x, leaf), x)
    kept = [residual.nbytes for residual in jax.tree.leaves(backward)]
    assert max(kept) <= leaf.values.nbytes and sum(kept) < 128 * 96
    wide = product(jnp.eye(128)[None], leaf)[0]
    grad = drawn((1, 2, 96), 3)
    np.testing.assert_allclose(backward(grad)[0], grad @ wide.T, atol=1e-4)
