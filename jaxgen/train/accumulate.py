"""Gradients of a batch, whole or in microbatches, normalised by tokens either way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.export import are_known
from jaxgen.mesh.explicit import auto_inside
from jaxgen.train.losses import Batch, Loss, as_loss, rows_of
from jaxgen.train.master import wide, widened
from jaxgen.varying import scan

LossFunction = Callable[..., Any]  # (params, config, batch, key) -> what `as_loss` takes
Merge = Callable[[Loss, Any], tuple[Loss, Any]]


def gradients(
    loss: LossFunction,
    params: Any,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    accumulate: int,
    merge: Merge | None = None,
) -> tuple[Loss, Any]:
    """Return (loss sums, gradient of total / weight) of a batch in `accumulate` microbatches.

    Sums are accumulated and divided once by the tokens of the whole batch: averaging per
    microbatch would weigh short ones too much. The backward pass works on sums, or as much, so that
    float16 holds what each token has of the mean. Gradients of parameters narrower than float32
    are float32. Dropout draws anew for each microbatch. Numbers of the batch are the same for each.
    merge: adds up (loss sums, gradients of sums) over devices, in code written per device.
    """
    plain = accumulate == 1 and merge is None
    # A power of two about as large as the batch. Written as a sum, for XLA joins the quotient by it
    # with the clip's; the number itself it makes a product of, and writes the clip's quotient down.
    sizes = [jnp.size(leaf) for leaf in jax.tree.leaves(batch)]
    largest = max([size for size in sizes if are_known(size)], default=1)
    size = jnp.sum(jnp.ones(1 << (largest.bit_length() - 1), jnp.float32))

    def one(rows, key):
        def total(params):
            result = as_loss(loss(params, config, rows, key), rows)
            # Where the weight of all is known here it divides the loss, and gradients only have a
            # constant taken out that keeps float16 in range.
            share = size / jax.lax.stop_gradient(divisor(result.weight)) if plain else 1.0
            return result.total * share, result

        (_, result), grads = jax.value_and_grad(total, has_aux=True)(params)
        # Means are summed as the loss is: by weight.
        sums = {n: x if plain else x * result.weight for n, x in result.metrics.items()}
        return result._replace(metrics=sums), widened(grads)

    result, grads = over_microbatches(one, params, batch, key, accumulate)
    if merge is not None:
        result, grads = merge(result, grads)
    if plain:
        return result, jax.tree.map(lambda g: g / size, grads)
    count = divisor(result.weight)
    means = {n: x / count for n, x in result.metrics.items()}
    grads = jax.tree.map(lambda g: (g / count).astype(g.dtype), grads)
    return result._replace(metrics=means), grads


def divisor(weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return what sums are divided by: the weight itself, 1 where there is none."""
    return jnp.where(weight == 0, 1.0, weight)


def over_microbatches(one, params, batch, key, accumulate):
    """Return the sums of one(rows, key) -> (Loss, gradient) over `accumulate` parts of the rows."""
    if accumulate == 1:
        return one(batch, key)
    leaves, structure = jax.tree.flatten(batch)
    cut = [jnp.ndim(leaf) > 0 for leaf in leaves]
    rows = rows_of(batch)
    if rows % accumulate:
        raise ConfigError(
            f"accumulate={accumulate} does not divide the {rows} rows of the batch; give a divisor "
            f"of {rows}, or other rows"
        )

    def body(sums, xs):
        dealt, index = iter(xs[0]), xs[1]
        part = [next(dealt) if is_cut else x for is_cut, x in zip(cut, leaves, strict=True)]
        rows = jax.tree.unflatten(structure, part)
        result, grads = one(rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, sums, grads), result

    # Sums stay in float32 even for parameters in bfloat16, whose eight bits would stop counting.
    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, wide(p.dtype)), params)
    dealt = [deal(x, accumulate) for is_cut, x in zip(cut, leaves, strict=True) if is_cut]
    grads, each = scan(body, zeros, (dealt, jnp.arange(accumulate)))
    total, weight, metrics = jax.tree.map(
        lambda x: jnp.sum(x, axis=0), (each.total, each.weight, each.metrics)
    )
    return Loss(total, weight, in_order(each.nll), metrics), grads


@auto_inside("x", lambda out, _: ".B")
def deal(x, accumulate):
    """[B, ...] -> [A, B / A, ...], dealing rows out in turn so that each device keeps its own."""
    return jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1)


@auto_inside("nll", lambda out, _: "T")
def in_order(nll):
    """[A, B / A, ...] -> [B, ...], the rows as they were before they were dealt out."""
    return jnp.swapaxes(nll, 0, 1).reshape(-1, *nll.shape[2:])
