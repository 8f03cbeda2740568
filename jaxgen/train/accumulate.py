"""Gradients of a batch, whole or in microbatches, normalised by tokens either way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.train.losses import Batch, Loss
from jaxgen.varying import scan

LossFunction = Callable[..., Loss]
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
    microbatch would weigh short ones too much. Dropout draws anew for each microbatch.
    merge: adds up (loss sums, gradients of sums) over devices, in code written per device.
    """

    def one(rows, key):
        def total(params):
            result = loss(params, config, rows, key)
            return result.total, result

        (_, result), grads = jax.value_and_grad(total, has_aux=True)(params)
        return result, grads

    if accumulate == 1:
        result, grads = one(batch, key)
    else:
        result, grads = _scan(one, params, _microbatches(batch, accumulate), key, accumulate)
    if merge is not None:
        result, grads = merge(result, grads)
    count = jnp.maximum(result.weight, 1.0)
    return result, jax.tree.map(lambda g: (g / count).astype(g.dtype), grads)


def _scan(one, params, batches, key, accumulate):
    def body(carry, xs):
        rows, index = xs
        total, weight, sums = carry
        result, grads = one(rows, jax.random.fold_in(key, index))
        sums = jax.tree.map(lambda s, g: s + g.astype(s.dtype), sums, grads)
        return (total + result.total, weight + result.weight, sums), result.nll

    # Sums stay in float32 even for parameters in bfloat16, whose eight bits would stop counting.
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    start = (jnp.zeros(()), jnp.zeros(()), zeros)
    (total, weight, sums), nll = scan(body, start, (batches, jnp.arange(accumulate)))
    grads = jax.tree.map(lambda s, p: s.astype(p.dtype), sums, params)
    return Loss(total, weight, jnp.swapaxes(nll, 0, 1).reshape(-1)), grads


def _microbatches(batch, accumulate):
    """[B, ...] -> [A, B / A, ...], dealing rows out in turn so that each device keeps its own."""

    def deal(x):
        return jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1)

    return jax.tree.map(deal, batch)
