"""One training step: pure, to be jit-compiled with its keyword arguments fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen import arguments
from jaxgen.arguments import above, at_least
from jaxgen.config import ModelConfig
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.train import accumulate as accumulation
from jaxgen.train import nonfinite
from jaxgen.train.accumulate import LossFunction
from jaxgen.train.losses import Batch, Loss
from jaxgen.train.master import in_float32, wide
from jaxgen.train.state import Health, State


@arguments.checked(accumulate=at_least(1), spike=above(1), patience=at_least(1))
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

    A step whose loss, gradient or update is not finite, or whose loss is a spike, leaves parameters
    and optimizer as they were and is counted in metrics["skipped"] (`nonfinite.check`). Parameters
    narrower than float32 are updated in float32 (`master`).

    Args:
        state: as `train_state` begins it, with the same optimizer.
        batch: a dict of arrays, one row each; numbers in it are given to every microbatch.
        optimizer: of Optax. One that reads the loss gets value=, grad= and value_fn=: the mean over
            the batch, its gradient, and the mean as a function of the parameters.
        loss: (params, config, batch, key) -> a Loss, a scalar, or a pair of either and a dict of
            arrays (`losses.as_loss`).
        accumulate: microbatches that the rows are dealt out to, 1 or more; the result is the same.
        spike: multiple of the running mean from which on a loss is refused; None: none is.
        patience: bad steps in a row after which nothing is taken any more, 1 or more.
        gradients: computes the gradient of a batch; see `train.partitioner` for others.

    Returns:
        The state, and metrics: loss (mean nll, nats), objective (what was minimised), grad_norm,
        tokens (`Loss.weight`), skipped, streak, cause (why this step is skipped, in
        `nonfinite.CAUSES`; 0: it is not), examples [B] (summed nll of each row), and those of the
        loss. Raises ConfigError for rows that `accumulate` does not divide, or for a loss that
        returns something else.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> rule, loss = optax.sgd(0.1), jaxgen.causal_loss
    >>> params = jaxgen.init(config, jax.random.key(0))
    >>> state = jaxgen.train_state(params, rule, jax.random.key(1))
    >>> batch = {"tokens": jnp.array([[1, 2, 3]]), "targets": jnp.array([[2, 3, 4]])}
    >>> state, metrics = jaxgen.train_step(state, batch, config=config, optimizer=rule, loss=loss)
    >>> int(state.step), int(metrics["skipped"])
    (1, 0)
    """
    _check_optimizer(optimizer, state)
    key = jax.random.fold_in(state.key, state.step)
    take = partial(gradients, loss, config=config, batch=batch, key=key, accumulate=accumulate)
    result, grads = take(state.params)
    count = accumulation.divisor(result.weight)
    mean, norm = result.nll.sum() / count, optax.global_norm(grads)
    objective = result.total / count
    more = {"value": objective, "grad": grads, "value_fn": _objective_of(take, state.params)}
    tx = in_float32(optimizer)
    update = lambda g: tx.update(g, state.optimizer, state.params, **more)  # noqa: E731
    updates, moments = update(grads)
    params = optax.apply_updates(state.params, updates)
    checked = _checked_update(update, grads, updates, norm, state.params)
    limits = {"spike": spike, "patience": patience, "update": checked}
    good, cause, health = nonfinite.check(state.health, objective, norm, **limits)
    state = replace(
        state,
        step=state.step + 1,
        params=nonfinite.select(good, params, state.params),
        optimizer=nonfinite.select(good, moments, state.optimizer),
        health=health,
    )
    return state, _metrics(result, mean, objective, norm, cause, health)


def _check_optimizer(optimizer: optax.GradientTransformation, state: State) -> None:
    wanted = jax.tree.structure(jax.eval_shape(in_float32(optimizer).init, state.params))
    if wanted != jax.tree.structure(state.optimizer):
        raise ConfigError(
            "state.optimizer is of another optimizer than optimizer=; begin the state with "
            "train_state(params, optimizer, key), or give the one that it was begun with"
        )


def _metrics(
    result: Loss, mean: Any, objective: Any, norm: Any, cause: Any, health: Health
) -> dict[str, Any]:
    metrics = {
        "loss": mean,
        "objective": objective,
        "grad_norm": norm,
        "tokens": result.weight,
        "skipped": health.skipped,
        "streak": health.streak,
        "cause": cause,
        "examples": result.nll,
    }
    for name in result.metrics.keys() & metrics.keys():
        raise ConfigError(
            f"the loss returned a metric {name!r}, which a step has itself; call it otherwise"
        )
    return metrics | result.metrics


def _checked_update(update: Callable, grads: Any, updates: Any, norm: Any, params: Any) -> Any:
    """Return the tree of numbers of an update that must be finite.

    XLA materialises a value with two readers, here updates and moments (the check, then the step).
    Where an update costs no more than reading its inputs, it is computed twice instead; the factor
    tied to the norm keeps the compiler from merging the two.
    """
    costly = ("dot_general[", "while[", "scan[")  # Muon's matmuls, a line search
    text = str(jax.make_jaxpr(lambda grads: update(grads)[0])(grads))
    if not any(word in text for word in costly):
        one = 1 + 0 * norm  # a norm that is not finite makes the step a bad one anyway
        updates, _ = update(jax.tree.map(lambda g: g * one, grads))
    # Added to a narrow parameter, an update may exceed what that can hold.
    return jax.tree.map(
        lambda u, p: u if wide(p.dtype) == p.dtype else (p + u).astype(p.dtype), updates, params
    )


def _objective_of(take: Callable[..., tuple[Loss, Any]], params: Any) -> Callable[[Any], Any]:
    """Return the mean loss of the batch as a function of parameters, for a line search.

    Its derivative is the gradient of `take`, microbatch by microbatch and over devices.
    """

    def value_and_gradient(trainable: Any) -> tuple[Any, Any]:
        rounded = jax.tree.map(lambda x, p: x.astype(p.dtype), trainable, params)
        result, grads = take(rounded)
        return result.total / accumulation.divisor(result.weight), grads

    @jax.custom_jvp
    def objective(trainable: Any) -> Any:
        return value_and_gradient(trainable)[0]

    @objective.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        value, grads = value_and_gradient(*primals)
        inner = jax.tree.map(lambda g, dot: jnp.sum(g * dot), grads, *tangents)
        return value, jax.tree.reduce(jnp.add, inner).astype(value.dtype)

    return objective
