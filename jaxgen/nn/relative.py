"""Order told by distances: a learned bias, or a learned vector, for each bucket of them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import lookup
from jaxgen.ops.positions import buckets, log_buckets


class Relative(nn.Module):
    """T5's relative positions (Raffel et al. 2020): a table of biases, for one layer or all."""

    config: ModelConfig

    @nn.compact
    def __call__(self, bucket: jax.Array) -> jax.Array:
        """Return the bias [B, N, T, S] of scores for buckets of distances [B, T, S]."""
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        shape = (config.relative.buckets, config.heads)
        bias_RN = weight(self, "bias", shape, "RN", normal, config.param_dtype)
        return lookup(bias_RN, bucket, dtype="float32").transpose(0, 3, 1, 2)


def buckets_of(config: ModelConfig, positions: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the buckets [B, T, S] of distances from positions [B, T] to keys [B, S]."""
    if config.positions == "disentangled":
        own, distance = config.disentangled, positions[:, :, None] - keys[:, None, :]
        if own.buckets is not None:
            distance = log_buckets(distance, number=own.buckets, farthest=own.distance)
        return jnp.clip(distance + own.span, 0, own.rows - 1)
    return buckets(
        keys[:, None, :] - positions[:, :, None],
        number=config.relative.buckets,
        farthest=config.relative.distance,
        direction="both" if config.topology == "encoder" else "back",
    )


class Vectors(nn.Module):
    """DeBERTa's table of the vectors of distances (He et al. 2021), which all layers read."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        """Return the vectors [R, D]."""
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        shape = (config.disentangled.rows, config.d_model)
        vectors = weight(self, "vectors", shape, "RD", normal, config.param_dtype)
        vectors = vectors.astype(config.compute_dtype)
        return Norm(config, name="norm")(vectors) if config.disentangled.norm == "norm" else vectors
