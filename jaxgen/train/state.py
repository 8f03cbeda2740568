"""The training state: everything that changes from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray
from optax import contrib

from jaxgen import arguments
from jaxgen.export import make_serializable
from jaxgen.pytree import register_dataclass
from jaxgen.train.average import Averaged
from jaxgen.train.master import Master, in_float32

Params = dict[str, Any]
# Leaves are Any: shapes, shardings and dtypes of a state come as trees of the same two classes.


@register_dataclass
@dataclass(frozen=True)
class Health:
    """State of `nonfinite.check`: the running mean of the loss, and counts of refused steps."""

    mean: Any  # Float[Array, ""]
    seen: Any  # Int[Array, ""]
    skipped: Any  # Int[Array, ""]
    streak: Any  # Int[Array, ""]


@register_dataclass
@dataclass(frozen=True)
class State:
    """Parameters, optimizer, step, the run's key and health; a checkpoint holds exactly this."""

    step: Any  # Int[Array, ""]
    params: Any
    optimizer: Any
    key: Any  # PRNGKeyArray
    health: Health
    clip: Any = None  # Float[Array, ""], of a private run whose clip adapts; else None


@arguments.checked
def train_state(
    params: Params, optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> State:
    """Return the training state before the first step.

    Args:
        params: of the model; of those narrower than float32 it holds a float32 copy (`master`).
        optimizer: of Optax.
        key: seeds all dropout of the run.

    Returns:
        A State: step, params, optimizer state, key and health. Raises ConfigError for arguments of
        other types.

    >>> params = {"w": jnp.ones(3)}
    >>> int(jaxgen.train_state(params, optax.sgd(0.1), jax.random.key(0)).step)
    0
    """
    # Each scalar is a buffer of its own: donating one buffer twice is an error.
    zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]
    health = Health(jnp.zeros((), jnp.float32), *zeros[1:])
    moments = in_float32(optimizer).init(params)
    make_serializable(moments)
    return State(zeros[0], params, moments, key, health)


make = train_state  # the name it had before it was public, kept for programs that use it


def evaluation_params(state: State) -> Any:
    """Return the parameters to validate, save and generate with.

    Those of the state, except where the optimizer keeps others: an average (`train.average`), or
    `optax.contrib.schedule_free` (Defazio et al. 2024), which trains at other points.
    """

    def states(kind: type) -> list[Any]:
        leaves = jax.tree.leaves(state.optimizer, is_leaf=lambda x: isinstance(x, kind))
        return [leaf for leaf in leaves if isinstance(leaf, kind)]

    if means := states(Averaged):
        others = means[0].average
    elif free := states(contrib.ScheduleFreeState):
        masters = states(Master)
        params = masters[0].params if masters else state.params
        others = contrib.schedule_free_eval_params(free[0], params)
    else:
        return state.params
    return jax.tree.map(lambda x, p: x.astype(p.dtype), others, state.params)
