"""Private gradients: clipped by row, summed, and noise of the stated deviation."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_params import random_params

import jaxgen
from jaxgen import tree
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.privacy import clip as clips
from jaxgen.privacy import ghost
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.train.losses import causal_loss
from jaxgen.train.private import CausalGhost, Private, gradients, split_noise

BASE = {"vocab_size": 32, "context": 12, "layers": 2, "d_model": 16, "heads": 2, "init_std": 0.1}
MODELS = {
    "gpt2": {},
    "llama": {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none", "kv_heads": 1}
    | {"qk_norm": "head", "output": "untied"},
    "gemma": {"norm": "rms_offset", "logit_cap": 5.0, "embed": jaxgen.config.Embed(scale="root")},
}
NO_NOISE = PrivacySettings(noise_multiplier=1e-12, delta=1e-6, clip=0.5, expected=4.0, seed=5)
ADAPTIVE = replace(NO_NOISE, quantile=0.5)
LOUD = replace(NO_NOISE, noise_multiplier=1.5, expected=8.0, seed=2**40)
FROZEN = ("layers/feed/*", "embed/tokens", "final_norm/scale")
LOSS = partial(causal_loss, smoothing=0.1, z=1e-3)
GHOST = CausalGhost(lambda params, key: params, 0.1, 1e-3, None)


@cache
def model(name):
    config = jaxgen.ModelConfig(**(BASE | MODELS[name]))
    return config, random_params(config)


def batch(rows=4):
    tokens = np.random.default_rng(0).integers(0, 8, (rows, 13)).astype(np.int32)
    weights = np.ones((rows, 12), np.float32)
    weights[1, 6:], weights[3] = 0, 0  # a short text, and padding
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def private(config, settings=NO_NOISE, own=GHOST, frozen=()):
    return Private(settings, tree.flatten(api.axes(config)), frozen, own)


@cache
def compiled(name, settings=NO_NOISE, own=GHOST, frozen=(), accumulate=1):
    """Return the function (batch, clip) -> (loss, gradients by path) of a private way."""
    config, params = model(name)
    how = private(config, settings, own, frozen)
    make = partial(gradients, LOSS, config=config, accumulate=accumulate, private=how)
    step = jax.jit(lambda b, clip: make(params, batch=b, key=jax.random.key(7), clip=clip))

    def call(rows, clip=0.5):
        result, grads = step(rows, jnp.float32(clip))
        return result, tree.flatten(jax.device_get(grads))

    return call


@cache
def gradients_of_rows(name):
    """Return each row's loss and the gradient of its mean, by a Python loop."""
    config, params = model(name)

    @jax.jit
    def one(row):
        def mean(params):
            result = LOSS(params, config, row)
            return result.total / jnp.maximum(result.weight, 1), result

        grads, result = jax.grad(mean, has_aux=True)(params)
        return result, tree.flatten(grads)

    return [one({key: x[i : i + 1] for key, x in batch().items()}) for i in range(4)]


def by_hand(name, clip=0.5, frozen=()):
    """Return the sum of the clipped gradients of rows."""
    total = {}
    for _, flat in gradients_of_rows(name):
        flat = {p: np.zeros_like(g) if p in frozen else np.asarray(g) for p, g in flat.items()}
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in flat.values()))
        for path, g in flat.items():
            total[path] = total.get(path, 0) + g * min(1.0, clip / max(norm, 1e-30))
    return total


def frozen_paths():
    return {path for path in tree.flatten(model("gpt2")[1]) if tree.match(path, FROZEN)}


def assert_alike(grads, wanted, expected=4.0):
    for path, g in grads.items():
        np.testing.assert_allclose(g * expected, wanted[path], rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("gpt2", {"own": None}),
        ("gpt2", {"accumulate": 2}),
        ("gemma", {"settings": ADAPTIVE}),
    ],
    ids=["vmap", "microbatches", "whole"],
)
def test_clipped_gradients_are_those_of_a_loop_over_rows_by_vmap_and_by_ghost_norms(name, way):
    config, _ = model(name)
    assert ghost.supports(config, tree.flatten(api.axes(config)))
    result, grads = compiled(name, **way)(batch())
    assert_alike(grads, by_hand(name))
    losses = [loss for loss, _ in gradients_of_rows(name)]
    nll = np.concatenate([loss.nll for loss in losses])
    np.testing.assert_allclose(result.nll, nll, rtol=1e-5)
    assert float(result.total) == pytest.approx(sum(float(one.total) for one in losses), rel=1e-5)
    assert float(result.metrics["clipped"]) == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [({"expected": None}, "expected"), ({"seed": None}, "seed"),
     ({"noise_multiplier": None, "epsilon": 8.0}, "noise_multiplier")],
)  # fmt: skip
def test_settings_that_leave_noise_or_sampling_open_are_refused_not_guessed(change, words):
    with pytest.raises(ConfigError, match=f"settings.{words}=None must be given"):
        private(model("gpt2")[0], replace(NO_NOISE, **change))


def test_a_private_step_is_the_training_step():
    config, params = model("llama")
    rule = optax.sgd(1.0)
    state = jaxgen.train_state(params, rule, jax.random.key(1))
    how = partial(gradients, private=private(config))
    after, metrics = jaxgen.train_step(
        state, batch(), config=config, optimizer=rule, loss=LOSS, gradients=how
    )
    before, after = tree.flatten(params), tree.flatten(after.params)
    moved = {path: np.asarray(before[path]) - np.asarray(after[path]) for path in before}
    assert_alike(moved, by_hand("llama"))
    assert int(metrics["skipped"]) == 0


def test_what_is_frozen_has_no_part_in_the_norm_and_no_noise():
    run, nothing = compiled("gpt2", settings=LOUD, frozen=FROZEN), np.zeros((4, 12), np.float32)
    _, noise = run(batch() | {"weights": nothing})
    assert {path for path, g in noise.items() if not g.any()} == frozen_paths()
    _, grads = run(batch())  # of the same key, so of the same noise
    grads = {path: g - noise[path] for path, g in grads.items()}
    assert_alike(grads, by_hand("gpt2", frozen=frozen_paths()), expected=8.0)


def test_one_row_less_changes_the_sum_by_the_clip_at_most():
    run, rows = compiled("gpt2", accumulate=2), batch()
    _, whole = run(rows)
    lengths = []
    for i in range(4):
        weights = rows["weights"].copy()
        weights[i] = 0
        _, without = run(rows | {"weights": weights})
        difference = sum(((whole[p] - without[p]) ** 2).sum() for p in whole) ** 0.5
        lengths.append(4.0 * difference)
    assert max(lengths) <= 0.5 * (1 + 1e-5)
    assert lengths[0] == pytest.approx(0.5, rel=1e-5) and lengths[3] == 0


def test_layers_are_clipped_each_on_its_own():
    run = compiled("gpt2", replace(NO_NOISE, clipping="per_layer"), None, FROZEN)
    weights = 2 * 12 + 2  # that are trained: 12 of each layer
    _, grads = run({name: x[:1] for name, x in batch().items()}, 1e-3 * weights**0.5)
    assert {path for path, g in grads.items() if not g.any()} == frozen_paths()
    letters = tree.flatten(api.axes(model("gpt2")[0]))
    trained = {path: g for path, g in grads.items() if path not in frozen_paths()}
    parts = [g for p, g in trained.items() for g in (g if letters[p][0] == "L" else [g])]
    norms = [4 * np.linalg.norm(g.ravel()) for g in parts]
    assert len(parts) == weights
    assert max(norms) <= 1e-3 * (1 + 1e-5)
    assert sum(norm > 0.999e-3 for norm in norms) >= weights - 3  # biases of keys have none


def test_a_row_that_is_not_finite_counts_for_nothing():
    grads = {"w": jnp.array([[3.0, 4.0], [jnp.nan, 1.0], [jnp.inf, 0.0]])}
    summed, _ = clips.clipped_sum(grads, 1.0)
    np.testing.assert_allclose(summed["w"], [0.6, 0.8], rtol=1e-6)
    summed, _ = clips.clipped_sum(grads, 1.0, lambda path: 0)
    np.testing.assert_allclose(summed["w"], [0.6, 0.8], rtol=1e-6)


def test_noise_has_the_stated_deviation_and_is_a_function_of_step_and_seed():
    from scipy.stats import chi2

    run = compiled("gpt2", settings=LOUD, frozen=FROZEN)
    empty = batch() | {"weights": np.zeros((4, 12), np.float32)}
    result, grads = run(empty)
    noises = [g.ravel() for path, g in grads.items() if path not in frozen_paths()]
    numbers = np.concatenate(noises).astype(np.float64)
    deviation = 1.5 * 0.5 / 8.0
    assert 1e-4 < chi2.cdf(((numbers / deviation) ** 2).sum(), numbers.size) < 1 - 1e-4
    assert abs(numbers.mean()) < 4 * deviation / numbers.size**0.5
    assert float(result.metrics["clipped"]) == 0  # of no row
    assert len(np.unique(numbers)) > 0.99 * numbers.size  # no leaf repeats another's
    _, again = run(empty)
    for path, g in grads.items():
        np.testing.assert_array_equal(g, again[path])
    keys = [clips.secret_key(jax.random.key(0), seed) for seed in (7, 2**40, 2**40 + 1, 7 + 2**32)]
    assert len({int(jax.random.bits(key)) for key in keys}) == 4


def test_an_adaptive_clip_moves_to_the_quantile_and_its_count_costs_noise():
    run = compiled("gemma", settings=ADAPTIVE)
    far, near = (run(batch(), clip)[0].metrics for clip in (100.0, 0.01))
    assert float(far["next_clip"]) < 100 and float(near["next_clip"]) > 0.01
    noise, spread = split_noise(1.2, 200.0)
    assert noise**-2 + (2 * spread) ** -2 == pytest.approx(1.2**-2)
    assert spread == 10 and split_noise(1.2, 4.0)[1] == 1.2
