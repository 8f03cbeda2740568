"""Private gradients: clipped by row, summed, and noise of the stated deviation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.models import api
from jaxgen.privacy import clip as clips
from jaxgen.privacy import ghost
from jaxgen.privacy.settings import PrivacySettings
from jaxgen.train.losses import causal_loss
from jaxgen.train.private import CausalGhost, Private, gradients, split_noise

BASE = {"vocab_size": 32, "context": 12, "layers": 2, "d_model": 16, "heads": 2}
LLAMA = {"norm": "rms", "positions": "rope", "feed": "swiglu", "biases": "none", "kv_heads": 1}
MODELS = {
    "gpt2": {},
    "llama": LLAMA | {"qk_norm": "head", "output": "untied"},
    "gemma": {"norm": "rms_offset", "logit_cap": 5.0, "embed": jaxgen.config.Embed(scale="root")},
}
NO_NOISE = PrivacySettings(noise_multiplier=1e-12, delta=1e-6, clip=0.5, expected=4.0, seed=5)
LOSS = partial(causal_loss, smoothing=0.1, z=1e-3)
GHOST = CausalGhost(lambda params, key: params, 0.1, 1e-3, None)


def model(**fields):
    config = jaxgen.ModelConfig(**(BASE | fields))
    params = jaxgen.init(config, jax.random.key(0))
    shaken = lambda x: x + 0.05 * jax.random.normal(jax.random.key(3), x.shape)  # noqa: E731
    return config, jax.tree.map(shaken, params)


def batch(rows=4):
    tokens = np.random.default_rng(0).integers(0, 8, (rows, 13)).astype(np.int32)
    weights = np.ones((rows, 12), np.float32)
    weights[1, 6:], weights[3] = 0, 0  # a short text, and padding
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def private(config, settings=NO_NOISE, *, own=None, frozen=()):
    return Private(settings, tree.flatten(api.axes(config)), frozen, own)


def compiled(config, how, *, accumulate=1):
    make = partial(gradients, LOSS, config=config, accumulate=accumulate, private=how)
    step = jax.jit(lambda p, b, clip: make(p, batch=b, key=jax.random.key(7), clip=clip))

    def call(params, rows, clip=0.5):
        result, grads = step(params, rows, jnp.float32(clip))
        return result, tree.flatten(jax.device_get(grads))

    return call


def of_rows(config, params, rows, how, *, accumulate=1):
    return compiled(config, how, accumulate=accumulate)(params, rows)


def by_hand(config, params, rows, clip=0.5, frozen=()):
    """Return the sum of clipped gradients of a Python loop over rows."""

    @jax.jit
    def one(params, row):
        def mean(params):
            result = LOSS(params, config, row)
            return result.total / jnp.maximum(result.weight, 1)

        return jax.grad(mean)(params)

    total = {}
    for i in range(len(rows["tokens"])):
        flat = tree.flatten(one(params, {name: x[i : i + 1] for name, x in rows.items()}))
        flat = {p: np.zeros_like(g) if p in frozen else np.asarray(g) for p, g in flat.items()}
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in flat.values()))
        for path, g in flat.items():
            total[path] = total.get(path, 0) + g * min(1.0, clip / max(norm, 1e-30))
    return total


def assert_alike(grads, wanted, expected=4.0):
    for path, g in grads.items():
        np.testing.assert_allclose(g * expected, wanted[path], rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", MODELS)
def test_clipped_gradients_are_those_of_a_loop_over_rows_by_vmap_and_by_ghost_norms(name):
    config, params = model(**MODELS[name])
    wanted = by_hand(config, params, batch())
    assert ghost.supports(config, tree.flatten(api.axes(config)))
    ways = ((None, 1), (GHOST, 1), (GHOST, 2)) if name == "gpt2" else ((GHOST, 1),)
    for own, accumulate in ways:
        how = private(config, own=own)
        result, grads = of_rows(config, params, batch(), how, accumulate=accumulate)
        assert_alike(grads, wanted)
        plain = LOSS(params, config, batch())
        np.testing.assert_allclose(result.nll, plain.nll, rtol=1e-5)
        assert float(result.total) == pytest.approx(float(plain.total), rel=1e-5)
        assert float(result.metrics["clipped"]) == 1.0


def test_what_is_frozen_has_no_part_in_the_norm_and_no_noise():
    config, params = model()
    frozen = ("layers/feed/*", "embed/tokens", "final_norm/scale")
    paths = [p for p in tree.flatten(params) if tree.match(p, frozen)]
    loud = PrivacySettings(noise_multiplier=1.0, delta=1e-6, expected=4.0, seed=5)
    _, noisy = of_rows(config, params, batch(), private(config, loud, frozen=frozen))
    assert {path for path, g in noisy.items() if not g.any()} == set(paths)
    _, grads = of_rows(config, params, batch(), private(config, own=GHOST, frozen=frozen))
    assert_alike(grads, by_hand(config, params, batch(), frozen=paths))


def test_one_row_less_changes_the_sum_by_the_clip_at_most():
    config, params = model()
    run, rows = compiled(config, private(config, own=GHOST)), batch()
    _, whole = run(params, rows)
    lengths = []
    for i in range(4):
        weights = rows["weights"].copy()
        weights[i] = 0
        _, without = run(params, rows | {"weights": weights})
        difference = sum(((whole[p] - without[p]) ** 2).sum() for p in whole) ** 0.5
        lengths.append(4.0 * difference)
    assert max(lengths) <= 0.5 * (1 + 1e-5)
    assert lengths[0] == pytest.approx(0.5, rel=1e-5) and lengths[3] == 0


def test_layers_are_clipped_each_on_its_own():
    config, params = model()
    settings = PrivacySettings(
        noise_multiplier=1e-12, delta=1e-6, clip=0.5, expected=4.0, seed=5, clipping="per_layer"
    )
    rows = {name: x[:1] for name, x in batch().items()}
    _, grads = compiled(config, private(config, settings))(params, rows, 6e-3)
    letters = tree.flatten(api.axes(config))
    parts = [g for p, g in grads.items() for g in (g if letters[p][0] == "L" else [g])]
    norms = [4 * np.linalg.norm(g.ravel()) for g in parts]
    assert len(parts) == 2 * 16 + 4
    assert max(norms) <= 1e-3 * (1 + 1e-5)
    assert sum(norm > 0.999e-3 for norm in norms) >= 33  # biases of keys have none


def test_a_row_that_is_not_finite_counts_for_nothing():
    grads = {"w": jnp.array([[3.0, 4.0], [jnp.nan, 1.0], [jnp.inf, 0.0]])}
    summed, _ = clips.clipped_sum(grads, 1.0)
    np.testing.assert_allclose(summed["w"], [0.6, 0.8], rtol=1e-6)
    summed, _ = clips.clipped_sum(grads, 1.0, lambda path: 0)
    np.testing.assert_allclose(summed["w"], [0.6, 0.8], rtol=1e-6)


def test_noise_has_the_stated_deviation_and_is_a_function_of_step_and_seed():
    from scipy.stats import chi2

    config, params = model(vocab_size=2_000)
    empty = batch() | {"weights": np.zeros((4, 12), np.float32)}
    loud = PrivacySettings(noise_multiplier=1.5, delta=1e-6, clip=0.5, expected=8.0, seed=2**40)
    run = compiled(config, private(config, loud, own=GHOST))
    _, grads = run(params, empty)
    numbers = np.concatenate([g.ravel() for g in grads.values()]).astype(np.float64)
    squares = ((numbers / (1.5 * 0.5 / 8.0)) ** 2).sum()
    assert 1e-4 < chi2.cdf(squares, numbers.size) < 1 - 1e-4
    assert abs(numbers.mean()) < 4 * (1.5 * 0.5 / 8) / numbers.size**0.5
    assert len(np.unique(numbers)) > 0.99 * numbers.size  # no leaf repeats another's
    _, again = run(params, empty)
    for path, g in grads.items():
        np.testing.assert_array_equal(g, again[path])
    keys = [clips.secret_key(jax.random.key(0), seed) for seed in (7, 2**40, 2**40 + 1, 7 + 2**32)]
    assert len({int(jax.random.bits(key)) for key in keys}) == 4


def test_an_adaptive_clip_moves_to_the_quantile_and_its_count_costs_noise():
    config, params = model()
    settings = PrivacySettings(
        noise_multiplier=1e-9, delta=1e-6, clip=0.5, expected=3.0, seed=5, quantile=0.5
    )
    run = compiled(config, private(config, settings, own=GHOST))
    far, near = (run(params, batch(), clip)[0].metrics for clip in (100.0, 0.01))
    assert float(far["next_clip"]) < 100 and float(near["next_clip"]) > 0.01
    noise, spread = split_noise(1.2, 200.0)
    assert noise**-2 + (2 * spread) ** -2 == pytest.approx(1.2**-2)
    assert spread == 10 and split_noise(1.2, 4.0)[1] == 1.2


def test_a_private_step_is_the_training_step():
    config, params = model()
    rule = optax.sgd(0.1)
    state = jaxgen.train_state(params, rule, jax.random.key(1))
    how = partial(gradients, private=private(config, own=GHOST))
    after, metrics = jaxgen.train_step(
        state, batch(), config=config, optimizer=rule, loss=LOSS, gradients=how
    )
    wanted = by_hand(config, params, batch())
    moved = tree.flatten(jax.tree.map(lambda a, b: (a - b) / 0.1, params, after.params))
    for path, g in moved.items():
        np.testing.assert_allclose(4 * g, wanted[path], atol=2e-5, err_msg=path)
    assert int(metrics["skipped"]) == 0
