"""The chunked loss against its whole twin, and both against float64 numpy."""

import itertools
import os
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import jaxgen
from jaxgen.ops.contract import Biased
from jaxgen.ops.losses import cross_entropy, even, unembed, vocabulary_loss
from jaxgen.train import losses as train_losses

B, T, D, V = 2, 11, 6, 17


def inputs(scale=1.0):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = scale * jax.random.normal(keys[0], (B, T, D))
    table = jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, T), 0, V)
    weights = jax.random.randint(keys[3], (B, T), 0, 3).astype(jnp.float32)
    return hidden, table, targets, weights


def whole(hidden, table, targets, weights, cap, smoothing, z):
    logits = unembed(hidden, table, cap=cap, dtype="float32")
    loss, nll = cross_entropy(logits, targets, smoothing=smoothing, z=z)
    return jnp.sum(loss * weights), nll


@lru_cache
def whole_loss_and_gradients(cap):
    hidden, table, targets, weights = inputs()

    def plain(hidden, table):
        total, nll = whole(hidden, table, targets, weights, cap, smoothing=0.1, z=1e-2)
        return 3 * total, (total, nll)

    return jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(hidden, table)


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_chunked_loss_and_gradients_match_whole(chunk, cap):
    hidden, table, targets, weights = inputs()
    options = {"cap": cap, "smoothing": 0.1, "z": 1e-2}

    def chunked(hidden, table):
        found = vocabulary_loss(
            hidden, table, targets, weights, chunk=chunk, dtype="float32", **options
        )
        return 3 * found[0], found

    gradient = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))
    (_, found), grads = gradient(hidden, table)
    (_, wanted), expected = whole_loss_and_gradients(cap)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], wanted[1], rtol=2e-6, atol=1e-6)
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# What a loss may make of (sum, nll of each token).
USES = {
    "the sum": lambda total, nll: 3 * total,
    "rows": lambda total, nll: jnp.sum(jnp.array([1.0, -2.0]) * nll.sum(axis=1)),
    "focal": lambda total, nll: jnp.sum((1 - jnp.exp(-nll)) ** 2 * nll),
    "both": lambda total, nll: total * jnp.tanh(nll.sum(axis=1)).sum(),
}


# Of both results in all dtypes; the other uses in one of each kind, and in the rest by night.
DTYPES = [*itertools.product(["float32", "bfloat16", "float16"], ["float32", "bfloat16"])]
SOME = [("float32", "float32"), ("float16", "bfloat16")]


@pytest.mark.parametrize(
    ("use", "dtype", "compute"),
    [
        (use, *dtypes)
        for use in USES
        for dtypes in (DTYPES if use == "both" or "JAXGEN_NIGHTLY" in os.environ else SOME)
    ],
)
def test_every_derivative_is_that_of_the_whole_loss(use, dtype, compute):
    hidden, table, targets, _ = inputs()
    table = Biased(table.astype(dtype), jnp.linspace(-1, 1, V).astype(dtype))
    hidden, options = hidden.astype(dtype), {"cap": 3.0, "smoothing": 0.1, "z": 1e-2}
    weights = jax.random.normal(jax.random.key(5), (B, T)).at[0, :3].set(0.0)
    targets = targets.at[1, 4].set(-100)

    def chunked(*given):
        *parts, weights = given
        found = vocabulary_loss(*parts, targets, weights, chunk=4, dtype=compute, **options)
        return USES[use](*found)

    def plain(hidden, table, weights):
        logits = unembed(hidden, table, cap=3.0, dtype=compute)
        loss, nll = cross_entropy(logits, targets, smoothing=0.1, z=1e-2)
        return USES[use](jnp.sum(loss * weights), nll)

    # Of float32 to 1e-5; else to the last bits of what is rounded.
    exact = max(float(jnp.finfo(d).eps) for d in (dtype, compute))
    near = 1e-5 if exact < 1e-6 else 4 * exact
    given = hidden, table, weights
    tangents = jax.tree.map(jnp.cos, given)

    def derivatives(f):
        return jax.jit(lambda *x: (jax.grad(f, (0, 1, 2))(*x), jax.jvp(f, x, tangents)))(*given)

    (found, (value, slope)), (wanted, (right, along)) = map(derivatives, (chunked, plain))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        one, other = np.float32(one), np.float32(other)
        np.testing.assert_allclose(one, other, atol=near * max(np.abs(other).max(), 1.0))
    np.testing.assert_allclose(value, right, rtol=near)
    np.testing.assert_allclose(slope, along, rtol=8 * near, atol=8 * near * abs(value))


def test_second_derivatives_are_those_of_the_whole_loss():
    hidden, table, targets, weights = inputs()
    options = {"cap": None, "smoothing": 0.0, "z": 0.0}

    def bend(f):
        slope = jax.grad(lambda h: USES["both"](*f(h, table, targets, weights, **options)))
        return jax.jit(lambda h: jax.jvp(slope, (h,), (jnp.sin(h),))[1])(hidden)

    found, wanted = bend(partial(vocabulary_loss, chunk=4, dtype="float32")), bend(whole)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def gradient_of(use, chunk):
    hidden, table, targets, weights = inputs()

    def loss(hidden, table):
        options = {"cap": None, "smoothing": 0.0, "z": 0.0, "dtype": "float32"}
        return USES[use](*vocabulary_loss(hidden, table, targets, weights, chunk=chunk, **options))

    return jax.grad(loss, (0, 1)), (hidden, table)


@pytest.mark.parametrize("use", USES)
def test_all_logits_never_exist_at_once(use):
    def program(chunk):
        function, given = gradient_of(use, chunk)
        return str(jax.make_jaxpr(function)(*given))

    assert f"[{B},2,{V}]" in program(2)
    assert f"[{B},{T},{V}]" not in program(2) and f"[{B},12,{V}]" not in program(2)
    assert f"[{B},6,{V}]" in program(8) and f"[{B},8,{V}]" not in program(8)  # of even length


@pytest.mark.parametrize("use, loops", [("the sum", 1), ("both", 2)])
def test_logits_are_made_again_only_for_a_gradient_of_each_token(use, loops):
    function, given = gradient_of(use, 4)
    compiled = jax.jit(function).lower(*given).compile()
    assert compiled.as_text().count(" while(") == loops


@pytest.mark.parametrize("target, silent", [(-100, True), (-1, True), (-2, False), (V, False)])
def test_a_target_is_ignored_or_a_token_or_not_a_number(target, silent):
    hidden, table, targets, weights = inputs()
    options = {"cap": None, "smoothing": 0.1, "z": 1e-2, "chunk": 4, "dtype": "float32"}
    found = vocabulary_loss(hidden, table, targets.at[1, 2].set(target), weights + 1, **options)
    wanted = vocabulary_loss(hidden, table, targets, weights.at[1, 2].set(-1.0) + 1, **options)
    if silent:
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
        assert found[1][1, 2] == 0.0
    else:
        assert np.isnan(found[0]) and np.isnan(found[1]).sum() == 1


def bodies(jaxpr):
    """Return the text of each loop's body in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield str(equation.params["jaxpr"])
        for inner in jaxprs_in_params(equation.params):
            yield from bodies(inner)


@pytest.mark.parametrize("bias", [False, True])
def test_the_table_is_cast_once_and_its_gradient_is_summed_in_its_own_type(bias):
    hidden, table, targets, weights = inputs()
    hidden = hidden.astype(jnp.bfloat16)
    table = Biased(table, jnp.linspace(-1, 1, V)) if bias else table

    def loss(table, chunk):
        options = {"cap": None, "smoothing": 0.0, "z": 0.0, "dtype": "bfloat16"}
        return vocabulary_loss(hidden, table, targets, weights, chunk=chunk, **options)[0]

    grads = jax.grad(loss)(table, 3)
    wholes = jax.tree.leaves(jax.grad(loss)(table, T))
    for one, whole in zip(jax.tree.leaves(grads), wholes, strict=True):
        assert one.dtype == "float32"
        np.testing.assert_allclose(one, whole, atol=0.02 * np.abs(whole).max())
    (body,) = bodies(jax.make_jaxpr(jax.grad(partial(loss, chunk=3)))(table).jaxpr)
    assert f"bf16[{V},{D}] = convert_element_type" not in body and f"bf16[{V},{D}]" in body


def test_the_gradient_of_a_loss_scatters_nothing():
    logits, targets = jax.random.normal(jax.random.key(0), (3, V)), jnp.array([0, 16, 5])

    def loss(logits):
        return cross_entropy(logits, targets, smoothing=0.0, z=0.0)[0].sum()

    assert "scatter" not in str(jax.make_jaxpr(jax.grad(loss))(logits))
    wanted = jax.nn.softmax(logits) - jax.nn.one_hot(targets, V)
    np.testing.assert_allclose(jax.grad(loss)(logits), wanted, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_cross_entropy_matches_float64(scale):
    rng = np.random.default_rng(0)
    logits = scale * rng.uniform(-1, 1, (5, 9)).astype(np.float32)
    targets = rng.integers(0, 9, 5)
    loss, nll = cross_entropy(jnp.asarray(logits), jnp.asarray(targets), smoothing=0.2, z=1e-3)
    exact = logits.astype(np.float64)
    top = exact.max(-1)
    total = top + np.log(np.exp(exact - top[:, None]).sum(-1))
    wanted = total - exact[np.arange(5), targets]
    np.testing.assert_allclose(nll, wanted, rtol=1e-6, atol=1e-6 * scale)
    smooth = 0.8 * wanted + 0.2 * (total - exact.mean(-1)) + 1e-3 * total**2
    np.testing.assert_allclose(loss, smooth, rtol=2e-6)


def test_a_weight_of_zero_silences_a_bad_token():
    hidden, table, targets, weights = inputs()
    hidden = hidden.at[0, 3].set(jnp.nan)
    weights = weights.at[0, 3].set(0.0)
    options = {"cap": None, "smoothing": 0.0, "z": 0.0, "dtype": "float32"}
    total, _ = vocabulary_loss(hidden, table, targets, weights, chunk=4, **options)
    assert jnp.isfinite(total)


@pytest.mark.parametrize("length, most, wanted", [(512, 333, 256), (512, 512, 512), (9, 4, 3),
                                                  (7, 1, 1), (5, 64, 5)])  # fmt: skip
def test_parts_are_as_few_and_as_short_as_they_can_be(length, most, wanted):
    assert even(length, most) == wanted
    assert -(-length // wanted) == -(-length // most) and wanted <= most


def test_a_gpu_has_more_logits_at_once(monkeypatch):
    config = jaxgen.ModelConfig(vocab_size=V, context=64, layers=1, d_model=8, heads=2)
    params = jaxgen.init(config, jax.random.key(0))
    batch = {"tokens": jnp.ones((2, 64), int), "targets": jnp.ones((2, 64), int)}
    monkeypatch.setattr(train_losses, "LOGITS_AT_ONCE", 2 * V * 16)
    monkeypatch.setattr(train_losses, "OF_A_GPU", 2 * V * 32)
    for platform, positions in (("cpu", 16), ("tpu", 16), ("gpu", 32)):
        monkeypatch.setattr(train_losses, "platform", lambda platform=platform: platform)
        made = str(jax.make_jaxpr(lambda p: jaxgen.causal_loss(p, config, batch)[0])(params))
        assert f"f32[2,{positions},{V}]" in made, platform
