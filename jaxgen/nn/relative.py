"""Order told by a learned bias for each bucket of distances."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxgen.config import ModelConfig
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import lookup
from jaxgen.ops.positions import buckets


class Relative(nn.Module):
    """T5's relative positions (Raffel et al. 2020): one table of biases for all layers."""

    config: ModelConfig

    @nn.compact
    def __call__(self, positions: jax.Array, keys: jax.Array) -> jax.Array:
        """Return the bias [B, N, T, S] of scores for positions [B, T] and keys [B, S]."""
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        shape = (config.relative.buckets, config.heads)
        bias_RN = weight(self, "bias", shape, "RN", normal, config.param_dtype)
        bucket = buckets(
            keys[:, None, :] - positions[:, :, None],
            number=config.relative.buckets,
            farthest=config.relative.distance,
            direction="both" if config.topology == "encoder" else "back",
        )
        return lookup(bias_RN, bucket, dtype="float32").transpose(0, 3, 1, 2)
