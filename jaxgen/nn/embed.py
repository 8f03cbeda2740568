"""Tokens to vectors, and the table that turns vectors back into logits."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import lookup
from jaxgen.ops.positions import sinusoid


class Embed(nn.Module):
    """Token vectors plus absolute positions, if the config has any."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        """Return (x [B, T, D], table [V, D]) for tokens and positions [B, T]."""
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        shape = (config.V, config.d_model)
        table = weight(self, "tokens", shape, "VD", normal, config.param_dtype)
        x = lookup(table, tokens, dtype=config.compute_dtype)
        if config.embed_scale == "root":
            # Rounded first, as Gemma multiplies.
            x = x * jnp.asarray(config.d_model**0.5, x.dtype)
        if config.positions == "learned":
            shape = (config.context, config.d_model)
            waves = weight(self, "positions", shape, "SD", normal, config.param_dtype)
            x = x + lookup(waves, positions, dtype=config.compute_dtype)
        elif config.positions == "sinusoid":
            # Vaswani et al. 2017 bring both terms to one scale by sqrt(d_model).
            x = x * config.d_model**0.5 + sinusoid(positions, config.d_model).astype(x.dtype)
        return x, table


class Unembed(nn.Module):
    """An output table of its own, for models that do not tie it to the embedding."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Any:
        """Return the table [V, D]."""
        config = self.config
        shape = (config.V, config.d_model)
        normal = nn.initializers.normal(config.init_std)
        return weight(self, "tokens", shape, "VD", normal, config.param_dtype)
