"""Objectives: pure functions of (params, config, batch, key)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.mesh import shards
from jaxgen.models import api
from jaxgen.ops.losses import vocabulary_loss

Batch = dict[str, Array | np.ndarray]

# Logits that may exist at once on a device when the chunk is left to us: 2^25 float32 are 128 MiB.
LOGITS_AT_ONCE = 2**25


class Loss(NamedTuple):
    """Sums over a batch, so that microbatches add up: divide by `weight` to get means."""

    total: Float[Array, ""]  # what is differentiated: weighted, smoothed, with z-loss; nats
    weight: Float[Array, ""]  # tokens that count
    nll: Float[Array, "B"]  # plain weighted negative log-likelihood of each row; nats


def causal_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    smoothing: float = 0.0,
    z: float = 0.0,
    chunk: int | None = None,
) -> Loss:
    """Return the next-token Loss of a batch of packed rows.

    batch: tokens and targets [B, T]; weights, segments and positions [B, T] are optional.
    key: turns dropout on. chunk: positions whose logits exist at once; None sizes it by memory.
    """
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    tokens, targets = arrays["tokens"], arrays["targets"]
    weights = arrays.get("weights")
    if weights is None:
        weights = jnp.ones(tokens.shape, jnp.float32)
    out = api.hidden(
        params,
        config,
        tokens,
        positions=arrays.get("positions"),
        segments=arrays.get("segments"),
        key=key,
    )
    fitting = max(LOGITS_AT_ONCE * shards("BTV") // (tokens.shape[0] * config.V), 1)
    total, nll = vocabulary_loss(
        out.features,
        out.table,
        targets,
        weights,
        cap=config.logit_cap,
        smoothing=smoothing,
        z=z,
        chunk=chunk or fitting,
        dtype=config.compute_dtype,
    )
    rows: Any = jnp.sum(jnp.where(weights > 0, nll * weights, 0.0), axis=1)
    return Loss(total, jnp.sum(weights), rows)
