"""Fast forms of products, norms and gates against the plain forms they stand for."""

import re
from functools import partial
from math import prod

import as_users
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops import contract as contracting
from jaxgen.ops import gates, norms
from jaxgen.ops.contract import add_bias, contract, product
from jaxgen.ops.cpu.matmul import FEW
from jaxgen.ops.cpu.transposed_weight import TransposedWeight
from jaxgen.ops.gates import ACTIVATIONS
from jaxgen.ops.norms import NORMS

PLAIN_GATES = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
SIZES = {"B": 2, "T": 3, "D": 4, "N": 2, "K": 1, "H": 6, "F": 5, "V": 7, "E": 3}
PRODUCTS = ("BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF", "BTF,FD->BTD", "BTD,VD->BTV")


def drawn(letters: str, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=[SIZES[x] for x in letters]), jnp.float32)


@pytest.mark.parametrize("name", PLAIN_GATES)
def test_slopes_of_gates_match_differentiation(name):
    x = jnp.asarray(np.concatenate([np.linspace(-6, 6, 41), [-80.0, 0.0, 80.0]]), jnp.float32)
    found, wanted = (
        jax.vmap(jax.value_and_grad(gate))(x) for gate in (ACTIVATIONS[name], PLAIN_GATES[name])
    )
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    tangents = jax.jvp(ACTIVATIONS[name], (x,), (2 * x,))[1]
    np.testing.assert_allclose(tangents, 2 * x * wanted[1], atol=1e-4)


def plain_norm(x, scale, bias, name):
    y = x - jnp.mean(x, axis=-1, keepdims=True) if name == "layer" else x
    y = y / jnp.sqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-5)
    return y * (1 + scale if name == "rms_offset" else scale) + bias


@pytest.mark.parametrize("name", NORMS)
def test_gradients_of_norms_match_differentiation(name):
    x, scale, bias, weight = drawn("BTD"), drawn("D", 1), drawn("D", 2), drawn("BTD", 3)

    def gradients(norm):
        return jax.grad(lambda *args: jnp.sum(norm(*args) * weight), (0, 1, 2))(x, scale, bias)

    found = gradients(lambda *args: NORMS[name](*args, epsilon=1e-5))
    wanted = gradients(lambda *args: plain_norm(*args, name))
    for mine, plain in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, plain, atol=2e-6)


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_halves_keep_what_they_were_given_and_not_its_float32(name, monkeypatch):
    x, weight = (drawn("BTD", seed).astype(jnp.bfloat16) for seed in (0, 3))
    scale, bias = drawn("D", 1), drawn("D", 2)

    def loss(x, scale, bias):
        return jnp.sum(NORMS[name](x, scale, bias, epsilon=1e-5) * weight)

    def kept():
        pull = jax.vjp(loss, x, scale, bias)[1]
        return {(leaf.dtype.name, leaf.shape) for leaf in jax.tree.leaves(pull)}

    wanted, wide = jax.grad(loss, (0, 1, 2))(x, scale, bias), ("float32", x.shape)
    assert wide in kept()
    monkeypatch.setattr(norms, "platform", lambda: "gpu")
    found = jax.grad(loss, (0, 1, 2))(x, scale, bias)
    assert wide not in kept() and ("bfloat16", x.shape) in kept()
    for mine, plain in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, plain)


@pytest.mark.parametrize("name", PLAIN_GATES)
def test_on_a_gpu_slopes_begin_anew_and_are_the_same(name, monkeypatch):
    x = jnp.linspace(-6, 6, 41)

    def slopes():
        slope = jax.vmap(jax.grad(lambda x: ACTIVATIONS[name](x)))
        return slope(x), "optimization_barrier" in str(jax.make_jaxpr(slope)(x))

    wanted, anew = slopes()
    assert not anew
    monkeypatch.setattr(gates, "platform", lambda: "gpu")
    found, anew = slopes()
    assert anew
    np.testing.assert_array_equal(found, wanted)
    tangents = jax.jvp(ACTIVATIONS[name], (x,), (2 * x,))[1]
    np.testing.assert_allclose(tangents, 2 * x * wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_gated_kinds_keep_what_they_multiply_and_nothing_made_of_it(name, monkeypatch):
    gate, up, weight = drawn("BTF"), drawn("BTF", 1), drawn("BTF", 2)

    def loss(gate, up):
        return jnp.sum(gates.gated(name, gate, up) * weight)

    def kept():
        pull = jax.vjp(loss, gate, up)[1]
        return sum(leaf.shape == gate.shape for leaf in jax.tree.leaves(pull))

    wanted, before = jax.value_and_grad(loss, (0, 1))(gate, up), kept()
    monkeypatch.setattr(gates, "platform", lambda: "gpu")
    found = jax.value_and_grad(loss, (0, 1))(gate, up)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, wanted)
    assert kept() == before - 1 == 3  # gate, up and what follows; not activation and slope


@pytest.mark.parametrize("equation", PRODUCTS)
def test_products_of_two_matrices_match_einsum(equation):
    left, right = equation.partition("->")[0].split(",")
    x, w = drawn(left), drawn(right, 1)

    def gradients(form):
        return jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(form(x, w))), (0, 1))(x, w)

    found = gradients(lambda x, w: product(equation, x, w))
    wanted = gradients(lambda x, w: jnp.einsum(equation, x, w))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), found, wanted)
    program = jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(product(equation, x, w)), (0, 1)))(x, w)
    dots = [line for line in program.eqns if line.primitive.name == "dot_general"]
    assert dots and all(v.aval.ndim == 2 for dot in dots for v in dot.invars)
    for dot in dots:  # no matrix is turned on the way
        assert dot.params["dimension_numbers"][0][0] == (1,)


@pytest.mark.parametrize("equation", ["BTD,DF->BTF", "BTF,FD->BTD"])
def test_what_makes_a_matrix_is_not_computed_again_to_turn_it(equation):
    left, right = equation.partition("->")[0].split(",")
    x, w = drawn(left), drawn(right, 1)

    def loss(x, w):
        return jnp.sum(jnp.sin(product(equation, jnp.cos(x), w)))

    text = as_users.compile(jax.jit(jax.grad(loss, (0, 1))).lower(x, w)).as_text()
    bodies = [body for body in text.split("\n}") if " transpose(" in body or " copy(" in body]
    assert bodies and not any(re.search(r" (cosine|sine|multiply)\(", body) for body in bodies)


@pytest.mark.parametrize("equation", ["BTD,EDF->EBTF", "BTD,BDF->BTF", "BT,TD->DB"])
def test_products_of_another_kind_are_left_to_einsum(equation):
    left, right = equation.partition("->")[0].split(",")
    x, w = drawn(left), drawn(right, 1)
    np.testing.assert_allclose(product(equation, x, w), jnp.einsum(equation, x, w), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
def test_products_in_bfloat16_sum_in_float32_over_two_rows_or_more(rows):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(1, rows, 64)), jnp.bfloat16)
    w = jnp.asarray(draw.normal(size=(64, 8)), jnp.bfloat16)
    equation = "BTD,DF->BTF"
    sums = np.einsum(equation, np.asarray(x, np.float64), np.asarray(w, np.float64))
    found = np.asarray(product(equation, x, w), np.float64)
    np.testing.assert_allclose(found, sums, rtol=2**-8, atol=1e-4)  # half a unit in the last place

    made = jax.make_jaxpr(partial(product, equation))(x, w)
    call = next(e for e in made.eqns if "call_jaxpr" in e.params)
    (dot,) = [e for e in call.params["call_jaxpr"].eqns if e.primitive.name == "dot_general"]
    assert dot.outvars[0].aval.dtype == jnp.float32
    assert dot.invars[0].aval.shape[0] == max(rows, 2)


@pytest.mark.parametrize("equation", PRODUCTS)
def test_one_row_is_two_on_a_gpu_and_changes_nothing(equation, monkeypatch):
    left, right = equation.partition("->")[0].split(",")
    x, w = drawn(left)[:1, :1], drawn(right, 1)
    monkeypatch.setattr(contracting, "platform", lambda: "gpu")
    found = product(equation, x, w)
    np.testing.assert_allclose(found, jnp.einsum(equation, x, w), atol=1e-6)
    made = str(jax.make_jaxpr(partial(product, equation))(x, w))
    assert re.search(r":f32\[2,\d+\] = dot_general", made)


def factors(program) -> set[str]:
    """Return the types that the products of a compiled program multiply."""
    bodies = [body for body in program.as_text().split("\n}") if " dot(" in body]
    return {kind for body in bodies for kind in re.findall(r"param\S*: (\w+)\[", body)}


@pytest.mark.parametrize("equation", ["BTD,DF->BTF", "BTF,FD->BTD"])
def test_gradients_of_products_in_bfloat16_multiply_bfloat16(equation):
    left, right = equation.partition("->")[0].split(",")
    sizes = {"B": 2, "T": 64, "D": 32, "F": 96}
    x, w = (jnp.ones([sizes[letter] for letter in of], jnp.bfloat16) for of in (left, right))
    plain = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    if factors(as_users.compile(plain.lower(w, w.T))) != {"bf16"}:
        pytest.skip("XLA has no products of bfloat16 on this processor")

    def loss(x, w):
        return jnp.sum(jnp.sin(product(equation, jnp.cos(x), w)).astype(jnp.float32))

    assert factors(as_users.compile(jax.jit(jax.grad(loss, (0, 1))).lower(x, w))) == {"bf16"}


def test_a_bias_s_gradient_is_summed_in_float32():
    y, bias = jnp.zeros((3, 1367, 2), jnp.bfloat16), jnp.asarray([1.0, 2.0])
    grad = jax.grad(lambda bias: jnp.sum(add_bias(y, bias).astype(jnp.float32)))(bias)
    np.testing.assert_array_equal(grad, 3 * 1367)  # bfloat16 has 4096 and 4112 there
    np.testing.assert_array_equal(add_bias(y, bias), jnp.broadcast_to(bias, y.shape))
    assert add_bias(y, bias).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_of_bfloat16_are_rounded_once(name):
    x = jnp.linspace(-4, 4, 999).astype(jnp.bfloat16)
    found, wanted = (
        jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(one) for one in (x, x.astype(jnp.float32))
    )
    for ours, wide in zip(found, wanted, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("equation", PRODUCTS)
@pytest.mark.parametrize("rows", [1, 2, 9, 64, 65])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_turned_weights_give_the_products_of_those_they_were(equation, rows, dtype):
    left, right = equation.partition("->")[0].split(",")
    x = jnp.asarray(np.random.default_rng(2).normal(size=(rows, *drawn(left).shape[1:])), dtype)
    x, w = x[:, :1], jnp.asarray(drawn(right, 1), dtype)
    form, leaf = partial(contract, equation, dtype=dtype), w
    if equation != "BTD,VD->BTV":  # a table lies as if it had been turned
        inner = sum(letter in left for letter in right)
        leaf = TransposedWeight.of(w, inner)
        np.testing.assert_array_equal(leaf.untransposed(), w)
        assert leaf.weight.shape == w.shape[inner:] + w.shape[:inner]
    sums = np.einsum(equation, np.asarray(x, np.float64), np.asarray(w, np.float64))
    near = {"float32": 2e-6, "bfloat16": 2**-7}[dtype] * max(1, np.abs(sums).max())
    np.testing.assert_allclose(np.asarray(form(x, leaf), np.float64), sums, atol=near)

    made = jax.make_jaxpr(form)(x, leaf)
    call = next(e for e in made.eqns if "call_jaxpr" in e.params)
    (dot,) = [e for e in call.params["call_jaxpr"].eqns if e.primitive.name == "dot_general"]
    wide = prod(x.shape[2:])
    outer = w.size // wide if dtype == "float32" and 1 < rows <= FEW else rows
    assert dot.invars[0].aval.shape == (outer, wide)
    assert dot.invars[0].aval.dtype == (jnp.float32 if rows == 1 else dtype)
