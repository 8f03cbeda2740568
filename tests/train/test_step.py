"""A step is pure, counts tokens not rows, and never smooths a bad number away."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgen
from jaxgen import tree
from jaxgen.train import autopsy, optimizer
from jaxgen.train import state as states
from jaxgen.train.accumulate import gradients
from jaxgen.train.settings import TrainSettings

CONFIG = jaxgen.ModelConfig(vocab_size=23, context=12, layers=2, d_model=16, heads=2, init_std=0.2)
B, T = 8, 12


def batch(seed=0):
    rng = np.random.default_rng(seed)
    # Rows of very different weight: an average of averages would be wrong.
    weights = (np.arange(T)[None] < np.array([1, 12, 3, 12, 7, 2, 12, 5])[:, None]).astype("f4")
    tokens = rng.integers(0, 23, (B, T + 1)).astype("i4")
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


@pytest.fixture(scope="module")
def params():
    return jax.jit(jaxgen.init, static_argnums=0)(CONFIG, jax.random.key(0))


def stepper(tx, **options):
    return jax.jit(
        partial(jaxgen.train_step, config=CONFIG, optimizer=tx, loss=jaxgen.causal_loss, **options)
    )


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_matches_the_large_batch(params, accumulate):
    take = jax.jit(partial(gradients, jaxgen.causal_loss), static_argnames=("config", "accumulate"))
    key = jax.random.key(0)
    whole, wanted = take(params, CONFIG, batch(), key, accumulate=1)
    parts, found = take(params, CONFIG, batch(), key, accumulate=accumulate)
    np.testing.assert_allclose(parts.total, whole.total, rtol=1e-6)
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-5, atol=1e-5)
    assert float(parts.weight) == float(whole.weight) == batch()["weights"].sum()
    for path, grad in tree.flatten(wanted).items():
        error = jnp.linalg.norm(tree.flatten(found)[path] - grad)
        assert error <= 2e-6 * jnp.linalg.norm(grad) + 1e-7, path


def test_dropout_draws_anew_for_each_microbatch_and_step(params):
    config = CONFIG.replace(dropout=0.5)
    rows = jax.tree.map(lambda x: np.repeat(x[:1], 4, 0), batch())
    loss, _ = gradients(jaxgen.causal_loss, params, config, rows, jax.random.key(0), accumulate=4)
    assert len(set(loss.nll.tolist())) == 4
    state = states.train_state(params, optax.set_to_zero(), jax.random.key(1))
    step = jax.jit(
        partial(
            jaxgen.train_step,
            config=config,
            optimizer=optax.set_to_zero(),
            loss=jaxgen.causal_loss,
        )
    )
    state, first = step(state, rows)
    _, second = step(state, rows)
    assert float(first["loss"]) != float(second["loss"])


def test_packed_loss_and_gradients_match_unpacked(params):
    rng = np.random.default_rng(1)
    one, two = rng.integers(0, 23, (1, 8)), rng.integers(0, 23, (1, 6))
    take = jax.jit(partial(gradients, jaxgen.causal_loss, params, CONFIG, accumulate=1))
    key = jax.random.key(0)

    def padded(row):
        length = row.shape[1] - 1
        pad = ((0, 0), (0, T - length))
        return {
            "tokens": np.pad(row[:, :-1], pad),
            "targets": np.pad(row[:, 1:], pad),
            "weights": np.pad(np.ones((1, length), "f4"), pad),
        }

    alone = [padded(row) for row in (one, two)]
    apart = jax.tree.map(lambda a, b: np.concatenate([a, b]), *alone)
    joined = {
        "tokens": np.concatenate([one[:, :-1], two[:, :-1]], 1),
        "targets": np.concatenate([one[:, 1:], two[:, 1:]], 1),
        "weights": np.ones((1, 12), "f4"),
        "segments": np.array([[1] * 7 + [2] * 5]),
        "positions": np.array([[*range(7), *range(5)]]),
    }
    unpacked, packed = take(apart, key), take(joined, key)
    np.testing.assert_allclose(packed[0].total, unpacked[0].total, rtol=1e-6)
    for path, grad in tree.flatten(unpacked[1]).items():
        np.testing.assert_allclose(tree.flatten(packed[1])[path], grad, atol=1e-6, err_msg=path)


def test_a_step_lowers_the_loss_and_leaves_its_arguments_alone(params):
    tx = optax.adam(1e-2)
    state = states.train_state(params, tx, jax.random.key(0))
    step, losses = stepper(tx), []
    now = state
    for _ in range(30):
        now, metrics = step(now, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    again, metrics = step(state, batch())
    assert float(metrics["loss"]) == losses[0]
    assert int(again.step) == 1 and int(state.step) == 0


def test_a_donated_state_is_consumed(params):
    tx = optimizer.make(TrainSettings(), jaxgen.axes(CONFIG))
    copy = jax.tree.map(jnp.copy, params)
    state = states.train_state(copy, tx, jax.random.key(0))
    step = partial(jaxgen.train_step, config=CONFIG, optimizer=tx, loss=jaxgen.causal_loss)
    jax.jit(step, donate_argnums=0)(state, batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def poisoned(params):
    flat = tree.flatten(params)
    return tree.unflatten(
        flat | {"layers/feed/up": flat["layers/feed/up"].at[1, 0, 0].set(jnp.nan)}
    )


def test_a_bad_step_changes_nothing_and_is_counted(params):
    tx = optax.adam(1e-2)
    step = stepper(tx, patience=5)
    state, _ = step(states.train_state(params, tx, jax.random.key(0)), batch())
    bad = batch() | {"weights": np.full((B, T), np.inf, "f4")}
    after, metrics = step(state, bad)
    assert not np.isfinite(metrics["objective"])
    assert (int(metrics["skipped"]), int(metrics["streak"])) == (1, 1)
    for old, new in zip(
        jax.tree.leaves((state.params, state.optimizer)),
        jax.tree.leaves((after.params, after.optimizer)),
        strict=True,
    ):
        assert (old == new).all()
    well, metrics = step(after, batch())
    assert (int(metrics["skipped"]), int(metrics["streak"])) == (1, 0)
    assert (well.params["layers"]["attn"]["q"] != after.params["layers"]["attn"]["q"]).any()


def test_after_the_last_bad_step_nothing_moves_any_more(params):
    tx = optax.adam(1e-2)
    step = stepper(tx, patience=2)
    state = states.train_state(params, tx, jax.random.key(0))
    bad = batch() | {"weights": np.full((B, T), np.inf, "f4")}
    for _ in range(2):
        state, metrics = step(state, bad)
    assert int(metrics["streak"]) == 2
    frozen, metrics = step(state, batch())
    assert int(metrics["streak"]) == 3
    assert (frozen.params["layers"]["attn"]["q"] == state.params["layers"]["attn"]["q"]).all()


def with_params(state, params):
    return dataclasses.replace(state, params=params)


def test_a_spike_is_skipped_once_the_loss_has_settled(params):
    tx = optax.set_to_zero()
    step = stepper(tx, spike=2.0, patience=5)
    state = states.train_state(params, tx, jax.random.key(0))
    spiked = jax.tree.map(lambda x: x * 30, params)
    wild = jax.jit(jaxgen.causal_loss, static_argnums=1)(spiked, CONFIG, batch())
    assert float(wild.total / wild.weight) > 10
    for _ in range(49):
        state, metrics = step(state, batch())
    _, metrics = step(with_params(state, spiked), batch())
    assert int(metrics["skipped"]) == 0
    state, metrics = step(state, batch())
    late, metrics = step(with_params(state, spiked), batch())
    assert int(metrics["skipped"]) == 1 and np.isfinite(metrics["loss"])
    assert float(late.health.mean) == float(state.health.mean)


def test_the_post_mortem_names_parameter_and_examples(params):
    state = states.train_state(poisoned(params), optax.set_to_zero(), jax.random.key(0))
    options = {"config": CONFIG, "loss": jaxgen.causal_loss, "accumulate": 1}
    found = autopsy.examine(state, batch(), 1, **options)
    assert found["params"] == ["layers/feed/up"]
    assert found["rows"] == list(range(B))
    error = autopsy.error(found, 7, 3, ["row 0"], "checkpoint 5 stays")
    assert error.exit_code == 6
    assert "step 7" in str(error) and "parameter layers/feed/up is not finite" in str(error)
    assert "checkpoint 5 stays" in str(error) and "\n" not in str(error)


def test_the_post_mortem_of_a_bad_example_names_its_row(params):
    state = states.train_state(params, optax.set_to_zero(), jax.random.key(0))
    weights = batch()["weights"].copy()
    weights[3, 2] = np.inf
    options = {"config": CONFIG, "loss": jaxgen.causal_loss, "accumulate": 1}
    found = autopsy.examine(state, batch() | {"weights": weights}, 1, **options)
    assert found["rows"] == [3] and found["params"] == []
    assert "the gradient of" in str(autopsy.error(found, 1, 3, [], "none"))
