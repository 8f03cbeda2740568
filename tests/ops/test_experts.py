"""Routing, dispatch and the losses of experts, against loops over tokens and experts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops import experts as ops
from jaxgen.ops.grouped_matmul import grouped_matmul

TOKENS, NUMBER, ACTIVE = 24, 8, 2


def logits(seed=0, scale=2.0):
    return scale * jax.random.normal(jax.random.key(seed), (TOKENS, NUMBER))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", ["all", "chosen"])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_router_takes_the_best_of_the_best_groups(router, normalise, groups, biased):
    bias = jnp.linspace(1, -1, NUMBER) if biased else None
    found = ops.route(
        logits(),
        bias,
        router=router,
        active=ACTIVE,
        normalise=normalise,
        groups=groups[0],
        active_groups=groups[1],
        scale=2.5,
    )
    for token, row in enumerate(np.asarray(logits(), np.float64)):
        scores = softmax(row) if router == "softmax" else sigmoid(row)
        wanted = scores + (np.zeros(NUMBER) if bias is None else np.asarray(bias))
        parts = np.split(wanted, groups[0])
        best = 1 if router == "softmax" else 2
        rank = np.argsort([-np.sort(part)[-best:].sum() for part in parts])
        size = NUMBER // groups[0]
        allowed = [e for e in range(NUMBER) if e // size in rank[: groups[1]]]
        chosen = sorted(allowed, key=lambda e: -wanted[e])[:ACTIVE]
        weights = scores[chosen] / (scores[chosen].sum() if normalise == "chosen" else 1)
        assert found.experts[token].tolist() == chosen
        np.testing.assert_allclose(found.weights[token], 2.5 * weights, rtol=1e-5)


def test_sparsemixer_weighs_an_expert_among_those_close_to_it():
    row = jnp.array([[1.0, 0.99, 0.5, -3.0]])
    mix = partial(ops.route, router="sparsemixer", active=2, normalise="all")
    found = mix(row)
    assert found.experts.tolist() == [[0, 1]]
    # 0.99 is within 2% of 1; of those left, nothing is close to 0.99.
    np.testing.assert_allclose(found.weights, [[sigmoid(0.01), 1.0]], rtol=1e-6)


def dense(x, w, routing):
    """Every expert of every token, weighed by zero where it was not chosen."""
    chosen = jax.nn.one_hot(routing.experts, w.shape[0])
    weights = jnp.einsum("ta,tae->te", routing.weights, chosen)
    return jnp.einsum("te,td,edf->tf", weights, x, w)


def dropless(x, w, routing):
    to = ops.sort(routing.experts, w.shape[0])
    rows = grouped_matmul(ops.spread(x, to), w, to.sizes, dtype="float32")
    return ops.collect(rows, routing.weights, to)


@pytest.mark.parametrize("fate", ["even", "one expert", "far"])
def test_tokens_go_to_their_experts_and_come_back_in_value_and_gradients(fate):
    keys = jax.random.split(jax.random.key(1), 3)
    x = jax.random.normal(keys[0], (TOKENS, 6))
    w = jax.random.normal(keys[1], (NUMBER, 6, 10))
    grad = jax.random.normal(keys[2], (TOKENS, 10))
    experts = ops.route(logits(), router="softmax", active=2, normalise="all").experts
    if fate == "one expert":
        experts = jnp.tile(jnp.array([[5, 0]]), (TOKENS, 1))
    if fate == "far":  # of other devices: they give 0 here
        experts = jnp.where(experts > 3, NUMBER, experts)

    def run(form, x, w, weights):
        return form(x, w, ops.Routing(experts, weights))

    weights = jax.random.uniform(keys[0], (TOKENS, 2))
    y, pull = jax.vjp(partial(run, dropless), x, w, weights)
    expected, pull_dense = jax.vjp(partial(run, dense), x, w, weights)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for one, other in zip(pull(grad), pull_dense(grad), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    slopes = [
        jax.jvp(partial(run, f), (x, w, weights), (x, w, weights))[1] for f in (dropless, dense)
    ]
    np.testing.assert_allclose(*slopes, atol=1e-4)


def test_losses_are_means_over_the_tokens_of_all_layers():
    layers = [logits(seed) for seed in (0, 1)]
    real = np.arange(TOKENS) < 20
    route = partial(ops.route, router="softmax", active=ACTIVE, normalise="all")
    stats = [ops.router_stats(one, route(one).experts, jnp.asarray(real)) for one in layers]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *stats)
    rows = np.concatenate([np.asarray(one, np.float64)[real] for one in layers])
    probs = np.stack([softmax(row) for row in rows])
    share = np.zeros(NUMBER)
    for row in probs:
        share[np.argsort(-row)[:ACTIVE]] += 1 / len(rows)
    expected = NUMBER * (share * probs.mean(0)).sum()
    np.testing.assert_allclose(ops.balance_loss(stacked, "model"), expected, rtol=1e-6)
    each = [float(ops.balance_loss(one, "model")) for one in stats]
    np.testing.assert_allclose(ops.balance_loss(stacked, "layer"), np.mean(each), rtol=1e-6)
    # Layers of which each uses but one expert, another one, are even together alone.
    only = ops.RouterStats(*(8 * TOKENS * jnp.eye(8),) * 2, jnp.zeros(8), jnp.full(8, 8.0 * TOKENS))
    assert [float(ops.balance_loss(only, over)) for over in ("model", "layer")] == [1, 8]
    z = np.mean(np.log(np.exp(rows).sum(1)) ** 2)
    np.testing.assert_allclose(ops.router_z_loss(stacked), z, rtol=1e-6)
    # Even routing costs as many as a token has experts, and no expert of any token is no NaN.
    even = ops.RouterStats(jnp.full(8, 6.0), jnp.full(8, 3.0), jnp.zeros(()), jnp.float32(24))
    np.testing.assert_allclose(ops.balance_loss(even, "layer"), ACTIVE)
    nothing = jax.tree.map(jnp.zeros_like, even)
    assert ops.balance_loss(nothing, "layer") == 0 and ops.router_z_loss(nothing) == 0


def test_the_gradient_of_a_bias_of_the_choice_is_the_uneven_load():
    def loss(bias):
        found = ops.route(logits(), bias, router="sigmoid", active=ACTIVE, normalise="chosen")
        stats = ops.router_stats(logits(), found.experts)
        return jnp.sum(ops.with_load_gradient(found.weights, bias, stats) ** 2), stats

    bias = jnp.zeros(NUMBER).at[3].set(5.0)  # which draws every token
    grad, stats = jax.grad(loss, has_aux=True)(bias)
    np.testing.assert_array_equal(jnp.sign(grad), jnp.sign(stats.chosen - TOKENS * ACTIVE / NUMBER))
    assert grad[3] > 0 and jnp.argmax(grad) == 3
