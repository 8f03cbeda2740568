"""A moving average of the parameters (Polyak and Juditsky 1992), as optimizer state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgen.train.master import Float32Updates, in_float32, wide


class Averaged(NamedTuple):
    """State of `averaged`: updates made, the average (float32 or wider), the optimizer's own."""

    count: Any
    average: Any
    inner: Any


def averaged(optimizer: optax.GradientTransformation, decay: float) -> Float32Updates:
    """Return the optimizer, whose state also holds an average of the parameters that it makes.

    After update t, counted from 1, average += (1 - min(decay, (1 + t) / (10 + t))) * (params -
    average): the first steps, far from the end, weigh little. Validation, samples and checkpoints
    read by `jaxgen.load` take the average (`train.state.evaluation_params`).
    """
    inner = in_float32(optimizer)

    def init(params: Any) -> Averaged:
        # A copy: donating one buffer twice is an error.
        copy = jax.tree.map(lambda p: jnp.array(p, wide(p.dtype)), params)
        return Averaged(jnp.zeros((), jnp.int32), copy, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Averaged]:
        updates, moments = inner.update(updates, state.inner, params, **extra)
        count = state.count + 1
        weight = 1 - jnp.minimum(decay, (1 + count) / (10 + count))

        def move(mean: jax.Array, old: jax.Array, step: jax.Array) -> jax.Array:
            new = old.astype(mean.dtype) + step.astype(mean.dtype)
            return mean + weight.astype(mean.dtype) * (new - mean)

        average = jax.tree.map(move, state.average, params, updates)
        return updates, Averaged(count, average, moments)

    return Float32Updates(init, update)
