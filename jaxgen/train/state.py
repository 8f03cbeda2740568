"""All that changes from step to step, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

# An abstract state, as eval_shape makes it, has the same type as a real one.
Real = Float[Array, ""] | jax.ShapeDtypeStruct
Count = Int[Array, ""] | jax.ShapeDtypeStruct
Key = PRNGKeyArray | jax.ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Health:
    """What the guard remembers: the running loss, and how many steps it has refused."""

    mean: Real
    seen: Count
    skipped: Count
    streak: Count


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Parameters, optimizer, step, the run's key and health; a checkpoint holds exactly this."""

    step: Count
    params: Any
    optimizer: Any
    key: Key
    health: Health


def make(params: Any, optimizer: optax.GradientTransformation, key: PRNGKeyArray) -> State:
    """Return the state before the first step; `key` seeds all dropout of the run."""
    # Each scalar is a buffer of its own: donating one buffer twice is an error.
    zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]
    health = Health(jnp.zeros(()), *zeros[1:])
    return State(zeros[0], params, optimizer.init(params), key, health)
