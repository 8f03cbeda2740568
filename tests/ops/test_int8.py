"""Weights of one byte: how far they are from what they were, and what is multiplied with them."""

import re
from functools import partial

import as_users
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops import cpu
from jaxgen.ops.contract import contract, lookup
from jaxgen.ops.cpu import matmul
from jaxgen.ops.int8 import Int8
from jaxgen.ops.int8_blocks import Int8Blocks

SIZES = {"B": 2, "T": 3, "D": 4, "N": 2, "H": 6, "F": 5, "V": 7}
PRODUCTS = {"BTD,DNH->BTNH": 1, "BTNH,NHD->BTD": 2, "BTD,DF->BTF": 1, "BTD,VD->BTV": 1}


def drawn(letters, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=[SIZES[x] for x in letters]), jnp.float32)


def back(leaf):
    """The rounded weight as float32, axes of the output first."""
    return np.asarray(leaf.values, np.float32) * np.asarray(leaf.scale).reshape(-1, 1)


@pytest.mark.parametrize("equation", PRODUCTS)
@pytest.mark.parametrize("rows", [1, 2, 70])
def test_products_are_those_of_the_rounded_weight(equation, rows):
    inner = PRODUCTS[equation]
    left, right = equation.partition("->")[0].split(",")
    x = jnp.asarray(np.random.default_rng(3).normal(size=(rows, 1, *drawn(left).shape[2:])), "f4")
    w = drawn(right, 1)
    if right == "VD":
        leaf, plain = Int8.of_transposed(w, inner), w
        rounded = back(leaf)
    else:
        leaf = Int8.of(w, inner)
        plain = jnp.transpose(w, (*range(inner, w.ndim), *range(inner)))
        rounded = np.moveaxis(back(leaf).reshape(plain.shape), range(-inner, 0), range(inner))
    assert leaf.values.dtype == jnp.int8 and int(jnp.abs(leaf.values).max()) == 127
    half = np.asarray(leaf.scale).reshape(-1, 1) / 2
    flat = plain.reshape(half.size, -1)
    assert (np.abs(back(leaf) - flat) <= half * (1 + 1e-5)).all()
    for dtype, near in (("float32", 1e-5), ("bfloat16", 0.1)):
        found = jax.jit(partial(contract, equation, dtype=dtype))(x, leaf)
        assert found.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(found, np.float32), np.einsum(equation, x, rounded), atol=near
        )


def test_rows_of_a_table_and_zeros():
    table = drawn("VD").at[2].set(0.0)
    leaf = Int8.of_transposed(table, 1)
    found = lookup(leaf, jnp.array([[2, 5]]), dtype="float32")
    np.testing.assert_array_equal(found[0, 0], 0.0)
    assert (leaf.scale > 0).all()
    np.testing.assert_allclose(found[0, 1], table[5], atol=float(leaf.scale[5]) / 2)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads a program for CPUs")
@pytest.mark.parametrize(("dtype", "rows"), [("int8", 1), ("int8", 3), ("bfloat16", 1)])
def test_narrow_weights_are_not_written_down_as_float32_for_few_rows(dtype, rows, monkeypatch):
    monkeypatch.setattr(matmul, "BLOCK", 2 * SIZES["D"] * 4)  # two outputs, of five
    w = drawn("DF")
    leaf = Int8.of(w, 1) if dtype == "int8" else w.T.astype(dtype)
    equation = "BTD,DF->BTF" if dtype == "int8" else "BTD,FD->BTF"
    form = partial(contract, equation, dtype="float32" if dtype == "int8" else dtype)

    def loop(x, leaf):  # over tokens, and rows of a prompt before it
        step = lambda _, x: jnp.tile(form(x, leaf).sum(axis=-1, keepdims=True), x.shape[-1])  # noqa: E731
        return jax.lax.fori_loop(0, 5, step, x), form(jnp.tile(x, (64, 1, 1)), leaf)

    x = jnp.ones((rows, 1, SIZES["D"]), "float32" if dtype == "int8" else dtype)
    program = as_users.compile(jax.jit(loop).lower(x, leaf)).as_text()
    carried = [line for line in program.splitlines() if " while(" in line]
    assert f"{SIZES['F']},{SIZES['D']}]" in carried[0]  # the narrow weights, and them alone
    for line in carried:
        assert f"f32[{SIZES['F']},{SIZES['D']}]" not in line, line
        assert f"f32[{SIZES['D']},{SIZES['F']}]" not in line, line


def stored():
    """Five outputs of four inputs, two to a scale."""
    leaf = Int8.of(drawn("DF"), 1)
    return Int8Blocks(leaf.values, jnp.repeat(leaf.scale[:, None], 2, 1) * jnp.array([1, 0.5]), 1)


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("form", ["int8", "blocks", "blocks of one row"])
def test_weights_are_widened_block_by_block_to_the_same_products(outputs, form, monkeypatch):
    monkeypatch.setattr(matmul, "BLOCK", outputs * SIZES["D"] * 4)
    leaf = Int8.of(drawn("DF"), 1) if form == "int8" else stored()
    x = drawn("BTD", 3)[: 1 if "one" in form else 2, : 1 if "one" in form else 3]
    run = lambda x: contract("BTD,DF->BTF", x, leaf, dtype="float32")  # noqa: E731
    both = jax.jit(lambda x: (run(x), jax.grad(lambda x: (run(x) ** 2).sum())(x)))
    with cpu.disabled("few_rows"):
        plain = both(x)
    in_blocks = outputs < 5 and "one" not in form  # one row widens inside its matmul
    assert ("scan" in str(jax.make_jaxpr(run)(x))) == in_blocks
    for found, wanted in zip(both(x), plain, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads a program for CPUs")
def test_the_row_is_made_once_and_not_for_each_output():
    leaf = Int8.of(drawn("DF"), 1)

    def step(x):  # a row that is computed, from axes of another shape
        row = (jax.nn.gelu(x) * 3 + 1).reshape(1, 1, -1)
        return contract("BTD,DF->BTF", row, leaf, dtype="float32")

    program = as_users.compile(jax.jit(step).lower(jnp.ones((SIZES["D"] // 2, 2)))).as_text()
    bodies = [body for body in program.split("\n\n") if re.search(r"= \S+ dot\(", body)]
    assert len(bodies) == 1 and "s8[" in bodies[0]
    done = set(re.findall(r"= \S+ ([a-z-]+)\(", bodies[0]))
    assert done <= {"parameter", "bitcast", "convert", "transpose", "copy", "dot"}, done


@pytest.mark.parametrize("number", [-0.0, 1e-30, -3e35, 7.25, np.inf, np.nan])
def test_any_number_of_a_row_is_multiplied_as_it_is(number):
    leaf = Int8.of(drawn("DF"), 1)
    x = jnp.zeros((1, 1, SIZES["D"])).at[0, 0, 1].set(number)
    y = contract("BTD,DF->BTF", x, leaf, dtype="float32")[0, 0]
    if np.isfinite(number):
        wanted = np.float32(number) * (leaf.values[:, 1] * leaf.scale)
        np.testing.assert_allclose(y, wanted, rtol=1e-6)
    else:
        assert not np.isfinite(y).any()
