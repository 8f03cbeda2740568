"""Federated rounds: what a client does, how parts are summed, and what a lost one changes."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.models import api
from jaxgen.privacy.settings import FederatedSettings, PrivacySettings
from jaxgen.train import federated
from jaxgen.train.private import Private

CONFIG = jaxgen.ModelConfig(vocab_size=16, context=6, layers=1, d_model=4, heads=1)
PARAMS = jaxgen.init(CONFIG, jax.random.key(0))
KEY = jax.random.key(1)
FOUR = FederatedSettings(clients=4, local_steps=2, learning_rate=0.5)


def batch(rows, seed=0, sizes=None):
    tokens = np.random.default_rng(seed).integers(0, 16, (rows, 7)).astype(np.int32)
    weights = np.ones((rows, 6), np.float32)
    for row, size in (sizes or {}).items():
        weights[row, size:] = 0
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


@lru_cache
def program(settings, accumulate=1, privacy=None, frozen=()):
    """The compiled gradient of a round, of (parameters, batch, key)."""
    private = None if privacy is None else Private(privacy, tree.flatten(api.axes(CONFIG)), frozen)
    fixed = {"config": CONFIG, "accumulate": accumulate, "private": private}
    own = federated.Federated(settings, frozen)
    return jax.jit(partial(federated.gradients, jaxgen.causal_loss, federated=own, **fixed))


def pseudo_gradient(settings, rows, *, lost=None, **more):
    each = len(rows["tokens"]) // settings.clients
    lost = np.zeros(settings.clients) if lost is None else np.asarray(lost)
    own = rows | {"lost": np.repeat(lost.astype(np.float32), each)}
    return program(settings, **more)(PARAMS, batch=own, key=KEY)


def mean_loss(params, part):
    result = jaxgen.causal_loss(params, CONFIG, part)
    return result.total / jnp.maximum(result.weight, 1)


local_gradient = jax.jit(jax.grad(mean_loss))


def by_hand(settings, rows):
    """How far each client comes by steps of plain SGD, and its tokens."""
    each = len(rows["tokens"]) // settings.clients
    ways, tokens = [], []
    for c in range(settings.clients):
        own = {name: x[c * each : (c + 1) * each] for name, x in rows.items()}
        params, width = PARAMS, each // settings.local_steps
        for s in range(settings.local_steps):
            part = {name: x[s * width : (s + 1) * width] for name, x in own.items()}
            params = jax.tree.map(
                lambda p, g, q: p - settings.learning_rate * (g + settings.proximal * (p - q)),
                *(params, local_gradient(params, part), PARAMS),
            )
        ways.append(jax.tree.map(jnp.subtract, params, PARAMS))
        tokens.append(own["weights"].sum())
    return ways, np.asarray(tokens)


def mean_way(ways, tokens):
    """Minus the mean of the ways, by tokens: what a round returns."""
    shares = tokens / tokens.sum()
    return jax.tree.map(lambda *d: -sum(n * x for n, x in zip(shares, d, strict=True)), *ways)


def near(a, b, most=1e-6):
    apart = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)
    assert max(jax.tree.leaves(apart)) < most, apart


@pytest.mark.parametrize(("accumulate", "proximal"), [(1, 0.0), (2, 0.7)])
def test_a_round_is_the_mean_way_of_clients_by_their_tokens(accumulate, proximal):
    rows = batch(16, sizes={1: 3, 2: 0, 3: 1})  # the first client has few
    settings = replace(FOUR, proximal=proximal)
    result, grads = pseudo_gradient(settings, rows, accumulate=accumulate)
    ways, tokens = by_hand(settings, rows)
    near(grads, mean_way(ways, tokens))
    assert float(result.metrics["arrived"]) == 4
    assert result.nll.shape == (16,)
    assert float(result.weight) == tokens.sum()


def test_one_client_and_one_local_step_are_plain_sgd_bit_for_bit():
    """A power of two as the rate, so that no compiler may round a product elsewhere."""
    rows, loss = batch(4), jaxgen.causal_loss
    one = FederatedSettings(clients=1, learning_rate=0.25)
    steps = {
        "plain": (optax.sgd(0.25), {}),
        "federated": (optax.sgd(1.0), {"gradients": partial(
            federated.gradients, federated=federated.Federated(one))}),
    }  # fmt: skip
    found = {}
    for name, (rule, more) in steps.items():
        step = jax.jit(partial(
            jaxgen.train_step, config=CONFIG, optimizer=rule, loss=loss, **more))  # fmt: skip
        state = jaxgen.train_state(PARAMS, rule, KEY)
        for _ in range(3):
            state, metrics = step(state, rows)
        found[name] = state.params, float(metrics["loss"])
    assert found["plain"][1] == found["federated"][1]
    for a, b in zip(
        jax.tree.leaves(found["plain"]), jax.tree.leaves(found["federated"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_lost_clients_change_only_weights():
    """The round is that of the others alone; what the lost one holds is of no account."""
    rows = batch(16, sizes={5: 2})
    result, grads = pseudo_gradient(FOUR, rows, lost=[0, 0, 1, 0])
    others = {name: np.delete(x, slice(8, 12), axis=0) for name, x in rows.items()}
    near(grads, mean_way(*by_hand(replace(FOUR, clients=3), others)))
    assert float(result.metrics["arrived"]) == 3
    assert float(result.weight) == others["weights"].sum()


@pytest.mark.parametrize("lost", [[0, 0, 0, 0], [0, 1, 0, 0]])
def test_secure_sums_are_those_in_the_clear(lost):
    rows = batch(16, sizes={5: 2})
    found = pseudo_gradient(replace(FOUR, secure=4.0), rows, lost=lost)[1]
    near(found, pseudo_gradient(FOUR, rows, lost=lost)[1])


QUIET = PrivacySettings(noise_multiplier=1e-9, delta=1e-6, clip=0.05, expected=8.0, seed=5,
                        unit="user")  # fmt: skip


@pytest.mark.parametrize("secure", [None, 0.05])
@pytest.mark.parametrize("lost", [[0, 0, 0, 0], [1, 0, 0, 0]])
def test_private_clients_are_clipped_each_and_divided_by_those_expected(secure, lost):
    rows, settings = batch(16, sizes={5: 2}), replace(FOUR, secure=secure)
    result, grads = pseudo_gradient(settings, rows, privacy=QUIET, lost=lost)
    ways, _ = by_hand(settings, rows)
    total = jax.tree.map(jnp.zeros_like, PARAMS)
    for way, gone in zip(ways, lost, strict=True):
        norm = optax.global_norm(way)
        assert norm > 0.05
        scale = 0.0 if gone else 0.05 / norm
        total = jax.tree.map(lambda t, d, s=scale: t - s * d / 8, total, way)
    near(grads, total)
    assert float(result.metrics["clipped"]) == 1.0


def test_noise_is_of_the_clip_and_frozen_parameters_get_none_of_it():
    loud, frozen = replace(QUIET, noise_multiplier=50.0), ("embed/*",)
    grads = tree.flatten(pseudo_gradient(FOUR, batch(16), privacy=loud, frozen=frozen)[1])
    assert not any(np.asarray(x).any() for path, x in grads.items() if path.startswith("embed/"))
    noise = jnp.concatenate([x.ravel() for p, x in grads.items() if not p.startswith("embed/")])
    deviation = 50.0 * 0.05 / 8  # beside which the clipped ways are nothing
    assert float(jnp.std(noise)) == pytest.approx(deviation, rel=5 / (2 * noise.size) ** 0.5)
