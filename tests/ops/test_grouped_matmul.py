"""Rows by groups, against every row times every weight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops import cpu
from jaxgen.ops.grouped_matmul import grouped_matmul
from jaxgen.ops.int8 import Int8

# Even, blocks of several sizes, all of one, a tail of no group, not a row, few (each a block).
SIZES = [(40, 40, 40), (0, 250, 70), (120, 0, 0), (1, 33, 50), (0, 0, 0), (2, 0, 3)]


def every_row_and_weight(x, w, sizes):
    owner = np.repeat(np.arange(len(sizes)), sizes)
    chosen = np.zeros((x.shape[0], len(sizes)), np.float32)
    chosen[np.arange(len(owner)), owner] = 1
    return jnp.einsum("re,ri,eio->ro", chosen, x, w)


def operands(sizes, dtype="float32"):
    rows = 6 if 0 < sum(sizes) <= 6 else max(120, sum(sizes))
    keys = jax.random.split(jax.random.key(sum(sizes)), 3)
    x, w = jax.random.normal(keys[0], (rows, 8)), jax.random.normal(keys[1], (3, 8, 16))
    return x.astype(dtype), w.astype(dtype), jax.random.normal(keys[2], (rows, 16)).astype(dtype)


@pytest.mark.parametrize("sizes", SIZES)
def test_rows_get_the_weight_of_their_group_in_value_and_gradients(sizes):
    x, w, grad = operands(sizes)
    fast = jax.jit(partial(grouped_matmul, sizes=jnp.asarray(sizes), dtype="float32"))
    slow = partial(every_row_and_weight, sizes=sizes)
    y, pull = jax.vjp(fast, x, w)
    expected, pull_slow = jax.vjp(slow, x, w)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for one, other in zip(pull(grad), pull_slow(grad), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    tangents = jax.jvp(fast, (x, w), (x * 0.5, w * 2))[1]
    np.testing.assert_allclose(tangents, jax.jvp(slow, (x, w), (x * 0.5, w * 2))[1], atol=1e-4)


@pytest.mark.parametrize("sizes", [(40, 0, 50), (2, 0, 3)])
def test_every_path_and_leaf_gives_the_same(sizes):
    x, w, _ = operands(sizes)
    expected = every_row_and_weight(x, w, sizes)
    counts = jnp.asarray(sizes)
    with cpu.disabled("grouped_matmul"):
        plain = grouped_matmul(x, w, counts, dtype="float32")
    many = jax.vmap(lambda x: grouped_matmul(x, w, counts, dtype="float32"))(jnp.stack([x, 2 * x]))
    half = grouped_matmul(x.astype("bfloat16"), w, counts, dtype="bfloat16")
    int8 = jax.vmap(partial(Int8.of, num_contracted=1))(w)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    np.testing.assert_allclose(many, jnp.stack([expected, 2 * expected]), atol=1e-4)
    np.testing.assert_allclose(half.astype("float32"), expected, atol=0.1)
    quantised = grouped_matmul(x, int8, counts, dtype="float32")
    np.testing.assert_allclose(quantised, expected, atol=0.15)
    assert (quantised != expected).any()


def test_the_loop_multiplies_a_block_of_rows_at_a_time():
    x, w, sizes = jnp.ones((2048, 64)), jnp.ones((8, 64, 32)), jnp.full(8, 256)
    program = str(jax.make_jaxpr(partial(grouped_matmul, dtype="float32"))(x, w, sizes))
    assert "f32[256,32] = dot_general" in program and "f32[512,32] = dot_general" in program
    assert "2048,32] = dot_general" not in program and "ragged_dot" not in program
