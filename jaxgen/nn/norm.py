"""Normalisation with its learned scale."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxgen.config import ModelConfig
from jaxgen.nn.weight import weight
from jaxgen.ops.norms import NORMS, unit_norm


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis, as the config says; its letter is in `axes`.

    With two letters the scale has the last two axes, and there is no bias; `joint` then says that
    both are normalised at once, as if they were one.
    """

    config: ModelConfig
    axes: str = "D"
    joint: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x [..., axes] normalised."""
        config = self.config
        if config.norm == "rms_unit":
            return unit_norm(x, epsilon=config.norm_epsilon)
        shape = x.shape[-len(self.axes) :]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        start = zeros if config.norm == "rms_offset" else ones
        scale = weight(self, "scale", shape, self.axes, start, config.param_dtype)
        bias = None
        if config.norm == "layer" and config.has_bias("norm") and len(self.axes) == 1:
            bias = weight(self, "bias", shape, self.axes, zeros, config.param_dtype)
        y = x
        if self.joint:
            y, scale = x.reshape(*x.shape[:-2], -1), scale.reshape(-1)
        y = NORMS[config.norm](y, scale, bias, epsilon=config.norm_epsilon)
        return y.reshape(x.shape)
