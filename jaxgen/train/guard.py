"""Refuses bad steps inside the compiled step, and finds out afterwards what was bad."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxgen import tree
from jaxgen.train.state import Health

MEMORY = 0.98  # of the running mean of the loss: about the last 50 steps
SETTLED = 50  # steps before a spike can be told from the first descent
FLOOR = 1.0  # nats a spike must also exceed the mean by: losses near 0 double by chance


def judge(
    health: Health,
    loss: Float[Array, ""],
    norm: Float[Array, ""],
    *,
    spike: float | None,
    patience: int,
    update: Any,
) -> tuple[Bool[Array, ""], Health]:
    """Return (good, health): whether a step with this mean loss and gradient norm may be taken.

    Bad is a non-finite loss, norm or number in the tree `update`, or a settled loss above spike *
    mean and mean + 1 nat. After `patience` bad steps in a row nothing is good any more: the run has
    to stop and look.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    for leaf in jax.tree.leaves(update):
        good &= jnp.isfinite(leaf).all()
    if spike is not None:
        settled = health.seen >= SETTLED
        good &= ~(settled & (loss > spike * health.mean) & (loss > health.mean + FLOOR))
    good &= health.streak < patience
    bad = 1 - good.astype(jnp.int32)
    mean = jnp.where(health.seen == 0, loss, MEMORY * health.mean + (1 - MEMORY) * loss)
    return good, Health(
        mean=jnp.where(good, mean, health.mean),
        seen=health.seen + 1 - bad,
        skipped=health.skipped + bad,
        streak=jnp.where(good, 0, health.streak + 1),
    )


def choose(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Return the tree `new` where the step is good, else `old`."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def blame(
    params: tree.Tree, grads: tree.Tree, updated: tree.Tree, nll: Float[Array, "B"]
) -> dict[str, list]:
    """Return what is non-finite: paths of `params`, `grads` and `updated`, and rows of the batch.

    updated: the parameters as the step would have left them.
    """

    def bad(leaves: tree.Tree) -> list[str]:
        flags = tree.map_paths(lambda path, leaf: jnp.all(jnp.isfinite(leaf)), leaves)
        return [path for path, fine in tree.flatten(jax.device_get(flags)).items() if not fine]

    rows = [i for i, value in enumerate(jax.device_get(nll).tolist()) if not abs(value) < 1e30]
    found = {"params": params, "gradients": grads, "updates": updated}
    return {name: bad(leaves) for name, leaves in found.items()} | {"rows": rows}
