"""One training step: pure, to be jit-compiled with its keyword arguments fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxgen.config import ModelConfig
from jaxgen.eager import compile_once
from jaxgen.train import accumulate as accumulation
from jaxgen.train import guard
from jaxgen.train.accumulate import LossFunction
from jaxgen.train.losses import Batch, Loss
from jaxgen.train.state import State


@compile_once
def train_step(
    state: State,
    batch: Batch,
    *,
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    loss: LossFunction,
    accumulate: int = 1,
    spike: float | None = None,
    patience: int = 3,
    gradients: Callable[..., tuple[Loss, Any]] = accumulation.gradients,
) -> tuple[State, dict[str, Any]]:
    """Return (state, metrics) after one step; donate the state when you jit it.

    A step whose loss or gradient is not finite, or whose loss is a spike (`guard.judge`), leaves
    parameters and optimizer as they were and is counted in metrics["skipped"].
    gradients: who takes the gradient of a batch; see `train.forms` for others.
    metrics: loss (mean nll, nats), objective (what was minimised), grad_norm, tokens, skipped,
    streak, and examples [B] (summed nll of each row); all are device scalars but the last.
    """
    key = jax.random.fold_in(state.key, state.step)
    result, grads = gradients(loss, state.params, config, batch, key, accumulate=accumulate)
    count = jax.numpy.maximum(result.weight, 1.0)
    mean, norm = result.nll.sum() / count, optax.global_norm(grads)
    objective = result.total / count
    good, health = guard.judge(state.health, objective, norm, spike=spike, patience=patience)
    updates, moments = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    state = State(
        step=state.step + 1,
        params=guard.choose(good, params, state.params),
        optimizer=guard.choose(good, moments, state.optimizer),
        key=state.key,
        health=health,
    )
    return state, {
        "loss": mean,
        "objective": objective,
        "grad_norm": norm,
        "tokens": result.weight,
        "skipped": health.skipped,
        "streak": health.streak,
        "examples": result.nll,
    }
