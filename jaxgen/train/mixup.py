"""Mixup of texts: a model learns from the mean of two texts' vectors, and of their classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.models import api
from jaxgen.ops.contract import lookup
from jaxgen.ops.losses import cross_entropy, scale_by_weights, unembed
from jaxgen.ops.perturbed import Perturbed
from jaxgen.train.losses import Batch, Loss, checked_batch, read, target_weights

TABLE = "embed/tokens"


def mixup_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    alpha: float,
    smoothing: float = 0.0,
    z: float = 0.0,
) -> Loss:
    """Return the Loss of the classes of rows, each mixed with the one before it.

    The vectors of tokens are share * own + (1 - share) * the other's, padding being 0, and so is
    the loss of the two classes (Zhang et al. 2018; Guo et al. 2019).

    Args:
        params, config, batch: as of `causal_loss`, of a model with classes and without experts.
        key: draws the shares, and turns dropout on.
        alpha: shares are drawn from Beta(alpha, alpha), the larger part being the row's own.
        smoothing, z: as of `causal_loss`.
    """
    arrays = checked_batch(batch, config)
    weights, loud = target_weights(arrays, config)
    tokens = arrays["tokens"]
    others = {name: jnp.roll(x, 1, axis=0) for name, x in arrays.items()}
    drawn = jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha, (tokens.shape[0], 1))
    padding = (weights == 0) | (jnp.roll(weights, 1, axis=0) == 0)
    share = jnp.where(padding, 1.0, jnp.maximum(drawn, 1 - drawn))
    real = jnp.asarray(arrays.get("segments", jnp.ones_like(tokens))) > 0
    both = jnp.maximum(real, jnp.roll(real, 1, axis=0) & (share < 1))
    flat = tree.flatten(params)
    own = lookup(flat[TABLE], tokens, dtype="float32")
    other = jnp.roll(own * real[..., None], 1, axis=0)
    part = (share * real)[..., None]
    mixed = Perturbed(flat[TABLE], (part - 1) * own + (1 - share)[..., None] * other)
    row = {"tokens": tokens, "segments": both.astype(jnp.int32)}  # which is one text, from 0 on
    out = read(tree.unflatten(flat | {TABLE: mixed}), config, row, key)
    logits = unembed(out.features, out.table, cap=None, dtype=config.compute_dtype)
    total, nll = (
        share * one + (1 - share) * two
        for one, two in zip(
            cross_entropy(logits, arrays["targets"], smoothing=smoothing, z=z),
            cross_entropy(logits, others["targets"], smoothing=smoothing, z=z),
            strict=True,
        )
    )
    nll = jnp.sum(scale_by_weights(nll, loud), axis=1)
    return Loss(jnp.sum(scale_by_weights(total, loud)), jnp.sum(jnp.abs(weights)), nll)
