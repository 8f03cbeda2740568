"""After a streak of bad steps: which parameter, and which examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.errors import NonFiniteError
from jaxgen.mesh import place
from jaxgen.train import guard
from jaxgen.train.accumulate import LossFunction, divisor, gradients
from jaxgen.train.master import in_float32
from jaxgen.train.state import State


def examine(
    state: State,
    batch: dict[str, np.ndarray],
    step: int,
    *,
    config: ModelConfig,
    loss: LossFunction,
    accumulate: int,
    optimizer: optax.GradientTransformation,
) -> dict[str, Any]:
    """Return what is wrong with the batch of `step` at the present parameters, as plain data.

    params, gradients, updates: paths that hold, or would get, something non-finite. rows: batch
    rows whose loss is not finite or, if all are, the row with the largest. largest: paths of the
    three largest gradients with their norms.
    """

    def whole(state, batch, key):
        result, grads = gradients(loss, state.params, config, batch, key, accumulate=accumulate)
        mean = result.total / divisor(result.weight)
        updates, _ = in_float32(optimizer).update(
            grads, state.optimizer, state.params, value=mean, grad=grads
        )
        return result, mean, grads, optax.apply_updates(state.params, updates)

    key = jax.random.fold_in(state.key, step - 1)
    result, mean, grads, updated = jax.jit(whole)(state, batch, key)
    losses = place.fetch(result.nll)
    found = guard.blame(state.params, grads, updated, jnp.asarray(losses))
    if not found["rows"]:
        found["rows"] = [int(np.argmax(losses))]
    norms = {path: float(jnp.linalg.norm(g.ravel())) for path, g in tree.flatten(grads).items()}
    ranked = sorted(norms, key=lambda path: -np.nan_to_num(norms[path], nan=np.inf))
    return found | {
        "largest": {path: norms[path] for path in ranked[:3]},
        "losses": [float(value) for value in losses],
        "objective": float(mean),
        "dtypes": [config.param_dtype, config.compute_dtype],
    }


def error(
    found: dict[str, Any], step: int, patience: int, examples: list[str], kept: str
) -> NonFiniteError:
    """Return the one-line error that names the parameter, the examples and what is kept."""
    if found["params"]:
        what = f"parameter {_some(found['params'])} is not finite"
    elif found["gradients"]:
        what = f"the gradient of {_some(found['gradients'])} is not finite"
    elif not np.isfinite(found["objective"]):
        what = "the loss is not finite, though its gradient is: is there a target outside the "
        what += "vocabulary?"
    elif found["updates"]:
        what = f"the optimizer's update of {_some(found['updates'])} is not finite"
    else:
        what = f"the loss of {found['objective']:.3g} is a spike, most of it in the gradient of "
        what += next(iter(found["largest"]))
    advice = "lower train.learning_rate or remove the examples"
    if "float16" in found["dtypes"]:
        advice = "float16 ends at 65504: take bfloat16 or float32, or lower train.learning_rate"
    return NonFiniteError(
        f"step {step}: {patience} bad steps in a row; {what}; examples: {', '.join(examples)}; "
        f"{kept}; {advice}"
    )


def _some(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"
