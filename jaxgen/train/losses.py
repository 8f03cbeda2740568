"""Objectives: pure functions of (params, config, batch, key)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.eager import compile_once
from jaxgen.export import are_known, serializable
from jaxgen.mesh import shards
from jaxgen.mesh.place import platform
from jaxgen.models import api
from jaxgen.ops.losses import vocabulary_loss

Batch = Mapping[str, Array | np.ndarray]

# Logits that may exist at once on a device when the chunk is left to us: 2^25 float32 are 128 MiB.
# For each chunk a GPU writes down the gradient of the whole table, so it has larger ones.
LOGITS_AT_ONCE, OF_A_GPU = 2**25, 2**27


@serializable
class Loss(NamedTuple):
    """Sums over a batch, so that microbatches add up: divide by `weight` to get means."""

    total: Float[Array, ""]  # what is differentiated: weighted, smoothed, with z-loss; nats
    weight: Float[Array, ""]  # tokens that count
    nll: Float[Array, "B"]  # plain weighted negative log-likelihood of each row; nats


@compile_once
def token_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    smoothing: float = 0.0,
    z: float = 0.0,
    chunk: int | None = None,
) -> Loss:
    """Return the Loss of what each position predicts: a token, or the class of the whole row.

    batch: tokens [B, T], and targets [B, T] or, for classes, [B, 1]; weights like targets,
    segments, positions and prefix [B, T] are optional; positions rise by one from token to token of
    a segment, as packing makes them. An encoder-decoder also reads source [B, S], with
    source_segments and source_positions. key: turns dropout on. chunk: positions whose logits
    exist at once; None sizes it by memory.
    """
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    targets = arrays["targets"]
    weights = arrays.get("weights")
    if weights is None:
        weights = jnp.ones(targets.shape, jnp.float32)
    out = read(params, config, arrays, key)
    each = targets.shape[0] * (config.classes or config.V)
    fitting = targets.shape[1] if are_known(targets.shape[1]) else 1
    if are_known(each):
        fitting = max(logits_at_once(platform()) * shards("BTV") // each, 1)
    total, nll = vocabulary_loss(
        out.features,
        out.table,
        targets,
        weights,
        cap=config.logit_cap if config.classes is None else None,
        smoothing=smoothing,
        z=z,
        chunk=chunk or fitting,
        dtype=config.compute_dtype,
    )
    rows: Any = jnp.sum(jnp.where(weights > 0, nll * weights, 0.0), axis=1)
    return Loss(total, jnp.sum(weights), rows)


def logits_at_once(platform: str) -> int:
    """Return how many logits may exist at once on a device of a platform."""
    return OF_A_GPU if platform == "gpu" else LOGITS_AT_ONCE


def read(
    params: api.Params, config: ModelConfig, batch: dict[str, Array], key: PRNGKeyArray | None
) -> api.Hidden:
    """Return what the model makes of a batch, up to the logits."""
    memory = None
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    if config.topology == "encoder_decoder":
        memory = api.encode(
            params,
            config,
            batch["source"],
            positions=batch.get("source_positions"),
            segments=batch.get("source_segments"),
            order="running",
            key=encoder_key,
        )
    return api.hidden(
        params,
        config,
        batch["tokens"],
        positions=batch.get("positions"),
        segments=batch.get("segments"),
        memory=memory,
        prefix=batch.get("prefix") if config.prompt == "both" else None,
        order="running",
        key=key if memory is None else decoder_key,
    )


causal_loss = token_loss  # the name under which a decoder's reader looks for it
