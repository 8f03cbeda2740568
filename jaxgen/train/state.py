"""All that changes from step to step, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from jaxgen.export import make_serializable, serializable

# Leaves are Any: shapes, shardings and dtypes of a state come as trees of the same two classes.


@serializable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Health:
    """What the guard remembers: the running loss, and how many steps it has refused."""

    mean: Any  # Float[Array, ""]
    seen: Any  # Int[Array, ""]
    skipped: Any  # Int[Array, ""]
    streak: Any  # Int[Array, ""]


@serializable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Parameters, optimizer, step, the run's key and health; a checkpoint holds exactly this."""

    step: Any  # Int[Array, ""]
    params: Any
    optimizer: Any
    key: Any  # PRNGKeyArray
    health: Health


def train_state(params: Any, optimizer: optax.GradientTransformation, key: PRNGKeyArray) -> State:
    """Return the state before the first step; `key` seeds all dropout of the run."""
    # Each scalar is a buffer of its own: donating one buffer twice is an error.
    zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]
    health = Health(jnp.zeros(()), *zeros[1:])
    moments = optimizer.init(params)
    make_serializable(moments)
    return State(zeros[0], params, moments, key, health)
