"""Normalisation with its learned scale."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxgen.config import ModelConfig
from jaxgen.nn.weight import weight
from jaxgen.ops.norms import NORMS


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis, as the config says; its letter is `axis`."""

    config: ModelConfig
    axis: str = "D"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x [..., axis] normalised."""
        config = self.config
        width = x.shape[-1]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        start = zeros if config.norm == "rms_offset" else ones
        scale = weight(self, "scale", (width,), self.axis, start, config.param_dtype)
        bias = None
        if config.norm == "layer" and config.biases != "none":
            bias = weight(self, "bias", (width,), self.axis, zeros, config.param_dtype)
        return NORMS[config.norm](x, scale, bias, epsilon=config.norm_epsilon)
