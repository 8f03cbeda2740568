"""The average of the parameters is what its formula says, and is what a run shows and loads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.store import Checkpoints
from jaxgen.train.average import averaged
from jaxgen.train.early_stopping import EarlyStopping, validation_losses
from jaxgen.train.state import evaluation_params, train_state


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_average_follows_the_parameters_by_its_formula(dtype):
    decay, rule = 0.5, averaged(optax.sgd(0.1), 0.5)
    state = train_state({"w": jnp.ones(3, dtype)}, rule, jax.random.key(0))
    params, moments, exact, mean = state.params, state.optimizer, np.ones(3), np.ones(3)
    for step in range(1, 12):
        gradients = jnp.asarray([1.0, -2.0, 0.25])
        updates, moments = rule.update({"w": gradients}, moments, params)
        params = optax.apply_updates(params, updates)
        exact = exact - 0.1 * np.asarray(gradients)
        mean = mean + (1 - min(decay, (1 + step) / (10 + step))) * (exact - mean)
    np.testing.assert_allclose(moments.average["w"], mean, rtol=1e-5, atol=1e-6)
    shown = evaluation_params(type(state)(state.step, params, moments, state.key, state.health))
    assert shown["w"].dtype == dtype
    np.testing.assert_array_equal(shown["w"], moments.average["w"].astype(dtype))
    assert not np.allclose(shown["w"].astype(jnp.float32), params["w"].astype(jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_checkpoint_is_read_as_the_average_where_it_holds_one(tmp_path, dtype):
    params = {"layers": {"w": jnp.ones(3, dtype)}}
    for number, rule in enumerate((optax.sgd(0.1), averaged(optax.sgd(0.1), 0.5))):
        state = train_state(params, rule, jax.random.key(0))
        if number:
            moved = jax.tree.map(lambda mean: mean + 0.5, state.optimizer.average)
            moments = state.optimizer._replace(average=moved)
            state = dataclasses.replace(state, optimizer=moments)
        options = {"keep_last": 1, "keep_best": 0, "fingerprints": {}, "verify": "full"}
        store = Checkpoints(tmp_path / str(number), **options)
        store.save(1, state, {}, metric=None)
        store.wait()
        leaf = store.read()["params"]["layers"]["w"]
        assert leaf.dtype == dtype and (leaf == 1 + number / 2).all()


def test_training_ends_after_so_many_validations_without_a_better_one(tmp_path):
    losses = [(10, 3.0), (20, 2.0), (30, 2.5), (40, float("nan")), (50, 1.9), (60, 1.9)]
    ends = []
    stopping = EarlyStopping(2)
    for step, loss in losses:
        stopping.add(step, loss)
        ends.append(stopping.is_over)
    assert ends == [False, False, False, True, False, False]
    assert (stopping.best, stopping.best_step) == (1.9, 50)
    assert not EarlyStopping(None, losses * 3).is_over
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "kind": "valid", "loss": 3.0}\n{"step": 10, "kind": "train"}\n'
                    '{"step": 20, "kind": "valid", "loss": null}\n{"step": 30, "kind"')  # fmt: skip
    rows = validation_losses(path, 20)
    assert rows[0] == (10, 3.0) and rows[1][0] == 20 and np.isnan(rows[1][1])
    assert validation_losses(path, 10) == [(10, 3.0)]
    assert validation_losses(tmp_path / "none", 10) == []
