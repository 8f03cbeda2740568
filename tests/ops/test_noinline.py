"""Transpositions that stand by themselves: the numbers and the layout that were asked for."""

import re

import as_users
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops.cpu.noinline import transpose


def test_a_transposition_apart_is_numpy_s_alone_under_vmap_and_backwards():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    np.testing.assert_array_equal(transpose(x[0]), x[0].T)
    np.testing.assert_array_equal(jax.vmap(transpose)(x), x.swapaxes(1, 2))
    last = jax.vmap(transpose, in_axes=-1, out_axes=-1)(jnp.moveaxis(x, 0, -1))
    np.testing.assert_array_equal(last, np.moveaxis(x.swapaxes(1, 2), 0, -1))
    weights = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = jax.grad(lambda x: jnp.sum(transpose(x) * weights))(x[0])
    np.testing.assert_array_equal(found, weights.T)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads a program for CPUs")
def test_its_result_lies_row_by_row_and_is_made_once_for_all_who_read_it():
    def read(x):
        turned = transpose(jnp.cos(x))
        return turned @ x, jnp.sum(turned.reshape(-1, 8), axis=0)

    text = as_users.compile(jax.jit(read).lower(jnp.ones((16, 24)))).as_text()
    calls = re.findall(r"= f32\[24,16\]\{(\d,\d)\} call\(", text)
    assert calls == ["1,0"]
    assert len(re.findall(r" transpose\(", text)) == 1
