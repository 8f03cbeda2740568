"""Non-finite steps and loss spikes: refused inside the compiled step, then located."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.errors import NonFiniteError
from jaxgen.mesh import place
from jaxgen.train.accumulate import LossFunction, divisor, gradients
from jaxgen.train.master import in_float32
from jaxgen.train.state import Health, State

MEMORY = 0.98  # decay of the running mean of the loss: about the last 50 steps
SETTLED = 50  # good steps before spikes are refused: the first descent looks like one
CAUSES = (
    "",
    "the loss is not finite",
    "the gradient is not finite",
    "the update is not finite",
    "the loss is a spike",
    "too many bad steps in a row",
)  # why a step is refused, by the number that `check` gives
FLOOR = 1.0  # nats above the mean that a spike must exceed too: losses near 0 double by chance


def check(
    health: Health,
    loss: Float[Array, ""],
    norm: Float[Array, ""],
    *,
    spike: float | None,
    patience: int,
    update: Any,
) -> tuple[Bool[Array, ""], Int[Array, ""], Health]:
    """Return (good, cause, health): whether to apply a step with this mean loss and gradient norm.

    A step is bad if its loss, norm or any number of the tree `update` is not finite, or if its
    loss, after the first 50 steps, exceeds both spike * mean and mean + 1 nat. After `patience` bad
    steps in a row every step counts as bad: the run has to stop and report. cause: the first of
    these, in CAUSES; 0: none.
    """
    finite = jnp.bool(True)
    for leaf in jax.tree.leaves(update):
        finite &= jnp.isfinite(leaf).all()
    spiked = jnp.bool(False)
    if spike is not None:
        settled = health.seen >= SETTLED
        spiked = settled & (loss > spike * health.mean) & (loss > health.mean + FLOOR)
    faults = [~jnp.isfinite(loss), ~jnp.isfinite(norm), ~finite, spiked, health.streak >= patience]
    cause = jnp.select(faults, [*range(1, len(CAUSES))], 0).astype(jnp.int32)
    good = cause == 0
    bad = 1 - good.astype(jnp.int32)
    mean = jnp.where(health.seen == 0, loss, MEMORY * health.mean + (1 - MEMORY) * loss)
    return (
        good,
        cause,
        Health(
            mean=jnp.where(good, mean, health.mean),
            seen=health.seen + 1 - bad,
            skipped=health.skipped + bad,
            streak=jnp.where(good, 0, health.streak + 1),
        ),
    )


def select(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return the tree `new` where the step is good, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def locate(
    state: State,
    batch: dict[str, np.ndarray],
    step: int,
    *,
    config: ModelConfig,
    loss: LossFunction,
    accumulate: int,
    optimizer: optax.GradientTransformation,
) -> dict[str, Any]:
    """Return where the batch of `step` is non-finite at the present parameters, as plain data.

    params, gradients, updates: paths with non-finite numbers, updates: after the step. rows: batch
    rows whose loss is not finite or, if all are finite, the row with the largest. largest: paths of
    the three largest gradients with their norms.
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
    located = _paths_and_rows(state.params, grads, updated, jnp.asarray(losses))
    if not located["rows"]:
        located["rows"] = [int(np.argmax(losses))]
    norms = {path: float(jnp.linalg.norm(g.ravel())) for path, g in tree.flatten(grads).items()}
    ranked = sorted(norms, key=lambda path: -np.nan_to_num(norms[path], nan=np.inf))
    return located | {
        "largest": {path: norms[path] for path in ranked[:3]},
        "losses": [float(value) for value in losses],
        "objective": float(mean),
        "dtypes": [config.param_dtype, config.compute_dtype],
    }


def _paths_and_rows(
    params: tree.Tree, grads: tree.Tree, updated: tree.Tree, nll: Float[Array, "B"]
) -> dict[str, list]:
    """Return the non-finite paths of `params`, `grads` and `updated`, and rows of the batch.

    updated: the parameters after the step.
    """

    def bad(leaves: tree.Tree) -> list[str]:
        flags = tree.map_paths(lambda path, leaf: jnp.all(jnp.isfinite(leaf)), leaves)
        return [path for path, fine in tree.flatten(jax.device_get(flags)).items() if not fine]

    rows = [i for i, value in enumerate(jax.device_get(nll).tolist()) if not abs(value) < 1e30]
    trees = {"params": params, "gradients": grads, "updates": updated}
    return {name: bad(leaves) for name, leaves in trees.items()} | {"rows": rows}


def report(
    located: dict[str, Any], step: int, patience: int, examples: list[str], checkpoint: str
) -> NonFiniteError:
    """Return the one-line error that names the parameter, the examples and the checkpoint left."""
    if located["params"]:
        what = f"parameter {_first(located['params'])} is not finite"
    elif located["gradients"]:
        what = f"the gradient of {_first(located['gradients'])} is not finite"
    elif not np.isfinite(located["objective"]):
        what = "the loss is not finite, though its gradient is: is there a target outside the "
        what += "vocabulary?"
    elif located["updates"]:
        what = f"the optimizer's update of {_first(located['updates'])} is not finite"
    else:
        what = f"the loss of {located['objective']:.3g} is a spike, most of it in the gradient of "
        what += next(iter(located["largest"]))
    advice = "lower train.learning_rate or remove the examples"
    if "float16" in located["dtypes"]:
        advice = "float16 ends at 65504: take bfloat16 or float32, or lower train.learning_rate"
    return NonFiniteError(
        f"step {step}: {patience} bad steps in a row; {what}; examples: {', '.join(examples)}; "
        f"{checkpoint}; {advice}"
    )


def _first(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"
