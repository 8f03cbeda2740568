"""Order told by a learned bias for each bucket of distances."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxgen.config import ModelConfig
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import lookup
from jaxgen.ops.positions import buckets


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
    return buckets(
        keys[:, None, :] - positions[:, :, None],
        number=config.relative.buckets,
        farthest=config.relative.distance,
        direction="both" if config.topology == "encoder" else "back",
    )
