"""Functions with a hand-written backward pass have all of JAX's derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.derivatives import custom_vjp, linear_call

X = jax.random.normal(jax.random.key(0), (3, 4))
W = jax.random.normal(jax.random.key(1), (4, 4))
INTEGERS = {"ids": jnp.arange(3), "none": None}


def plain(scale, x, w, integers):
    return scale * jnp.sin(x) @ w


def forward(scale, x, w, integers):
    return plain(scale, x, w, integers), (jnp.cos(x),)


def backward(scale, args, saved, grad):
    x, w, _ = args
    return scale * grad @ w.T * saved[0], scale * jnp.sin(x).T @ grad, None


custom = partial(custom_vjp, nondiff_argnums=(0,))(plain)
custom.defvjp(forward, backward)
ONE_LAYER = {
    "bare": lambda f, x, w: f(2.0, x, w, INTEGERS),
    "remat": lambda f, x, w: jax.checkpoint(lambda x, w: f(2.0, x, w, INTEGERS))(x, w),
}


def layers(layer, f):
    """A loss of three layers in a scan."""

    def loss(x, w):
        step = lambda x, _: (jnp.tanh(ONE_LAYER[layer](f, x, w)), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, x, None, length=3)[0] ** 2)

    return loss


def jvp_of_weights(f):
    return lambda x, w: jax.jvp(partial(f, x), (w,), (w + 1,))


TRANSFORMS = {
    "value": lambda f: f,
    "grad": lambda f: jax.grad(f, (0, 1)),
    "grad of one": lambda f: jax.grad(f, 1),
    "jvp": lambda f: lambda x, w: jax.jvp(f, (x, w), (x + 1, w + 1)),
    "jvp of one": jvp_of_weights,
    "linearize": lambda f: lambda x, w: jax.linearize(partial(f, x), w)[1](w),
    "jacfwd": lambda f: jax.jacfwd(f, (0, 1)),
    "forward over reverse": lambda f: jax.hessian(f, (0, 1)),
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f, (0, 1)), (0, 1)),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f, (0, 1)), (0, 1)),
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f, (0, 1)), (0, 1)),
    "gradient of each row": lambda f: (
        lambda x, w: jax.vmap(jax.grad(f, 1), (0, None))(x[:, None], w)
    ),
    "gradient through vmap": lambda f: jax.grad(
        lambda x, w: jnp.sum(jax.vmap(f, (0, None))(x[:, None], w)), (0, 1)
    ),
    "vmap of weights": lambda f: (
        lambda x, w: jax.vmap(jax.grad(f), (None, 2), 1)(x, jnp.stack([w, -w], 2))
    ),
}


@pytest.mark.parametrize("layer", ONE_LAYER)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_each_transform_gives_what_it_gives_of_the_plain_function(transform, layer):
    found, wanted = (
        jax.jit(TRANSFORMS[transform](layers(layer, f)))(X, W) for f in (custom, plain)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.parametrize("transform", ["value", "grad", "jvp", "jvp of one"])
def test_it_works_without_jit(transform):
    found, wanted = (TRANSFORMS[transform](layers("bare", f))(X, W) for f in (custom, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, wanted)


def test_the_hand_written_backward_pass_is_the_one_that_runs():
    text = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(custom(2.0, x, W, INTEGERS))))(X))
    assert "linear_call" not in text
    assert text.count("transpose[") == 2  # those of `backward`: JAX's own would contract in place


def test_forward_mode_is_never_traced_for_a_gradient():
    calls = []

    @custom_vjp
    def square(x):
        calls.append("body")
        return x * x

    square.defvjp(lambda x: (x * x, ()), lambda args, saved, grad: (2 * args[0] * grad,))
    assert jax.grad(square)(3.0) == 6.0 and calls == []
    assert jax.jvp(square, (3.0,), (1.0,)) == (9.0, 6.0) and calls == ["body"]


def test_a_dropped_cotangent_is_an_error():
    @custom_vjp
    def product(x, y):
        return x * y

    product.defvjp(lambda x, y: (x * y, ()), lambda args, saved, grad: (grad * args[1], None))
    assert jax.grad(product, 0)(2.0, 3.0) == 3.0
    with pytest.raises(TypeError, match="product drops a cotangent"):
        jax.grad(product, 1)(2.0, 3.0)


@pytest.mark.parametrize("transform", ["grad", "jvp", "forward over reverse"])
def test_a_linear_call_runs_its_own_transpose(transform):
    def times(x, w):  # a transpose that differs on purpose
        return jnp.sum(
            linear_call(lambda r, t: r * t, lambda r, g: 2 * r * g, jnp.sin(w[:3]), x) ** 2
        )

    def rule(x, w):
        return jnp.sum((jnp.sin(w[:3]) * x) ** 2)

    if transform == "grad":
        np.testing.assert_allclose(jax.grad(times)(X, W), 2 * jax.grad(rule)(X, W), rtol=1e-5)
        np.testing.assert_allclose(jax.grad(times, 1)(X, W), jax.grad(rule, 1)(X, W), rtol=1e-5)
    elif transform == "jvp":
        both = [jax.jvp(f, (X, W), (X + 1, W + 1)) for f in (times, rule)]
        np.testing.assert_allclose(*both, rtol=1e-5)
    else:
        both = [jax.jvp(jax.grad(f), (X, W), (X, W))[1] for f in (times, rule)]
        np.testing.assert_allclose(both[0], 2 * both[1], rtol=1e-5)


@pytest.mark.parametrize("topology", ["decoder", "encoder_decoder"])
def test_forward_mode_of_a_whole_model_agrees_with_its_gradient(topology):
    import jaxgen

    config = jaxgen.ModelConfig(
        vocab_size=13, context=16, layers=2, d_model=16, heads=2, topology=topology, output="untied"
    )
    params = jaxgen.init(config, jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (2, 9), 0, 13)

    def loss(params):
        if topology == "decoder":
            batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
            return jaxgen.causal_loss(params, config, batch).total
        memory = jaxgen.encode(params, config, ids)
        return jnp.sum(jaxgen.apply(params, config, ids, memory=memory).logits ** 2)

    keys = jax.random.split(jax.random.key(2), len(jax.tree.leaves(params)))
    leaves, form = jax.tree.flatten(params)
    moved = form.unflatten(
        [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )
    value, slope = jax.jit(lambda p, t: jax.jvp(loss, (p,), (t,)))(params, moved)
    wanted, grads = jax.jit(jax.value_and_grad(loss))(params)
    products = jax.tree.map(jnp.vdot, grads, moved)
    assert jnp.allclose(value, wanted, rtol=1e-6)
    assert jnp.allclose(slope, sum(jax.tree.leaves(products)), rtol=2e-4)
    linear = jax.linearize(loss, params)[1]
    assert jnp.allclose(linear(moved), slope, rtol=1e-5)
