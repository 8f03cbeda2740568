"""Tokens to vectors, and the table that turns vectors back into logits."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import lookup
from jaxgen.ops.positions import sinusoid


def token_table(module: nn.Module, config: ModelConfig) -> Any:
    """Return the [V, D] table `tokens` of a module, one vector per token id."""
    normal = nn.initializers.normal(config.init_std)
    shape = (config.V, config.d_model)
    return weight(module, "tokens", shape, "VD", normal, config.param_dtype)


class Tokens(nn.Module):
    """The table of token vectors alone, where two towers share it."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Any:
        """Return the table [V, D]."""
        return token_table(self, self.config)


class Embed(nn.Module):
    """Token vectors plus absolute positions and token types, if the config has any."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        types: jax.Array | None,
        table: Any,
        embeds: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return (x [B, T, D], table [V, D]) for tokens, positions and types [B, T].

        table: that of another tower; None where the module has one of its own. embeds: [B, T, D],
        instead of the table's rows of the tokens.
        """
        config = self.config
        table = token_table(self, config) if table is None else table
        if embeds is None:
            x = lookup(table, tokens, dtype=config.compute_dtype)
        else:
            x = embeds.astype(config.compute_dtype)
        if config.embed_scale == "root":
            # Rounded first, as Gemma multiplies.
            x = x * jnp.asarray(config.d_model**0.5, x.dtype)
        elif config.embed_scale != "one":
            x = x * jnp.asarray(config.embed_scale, x.dtype)
        if config.embed_norm == "tokens":
            x = Norm(config, name="norm")(x)
        if config.positions == "learned":
            rows = config.context + config.position_offset
            x = x + self._row("positions", rows, "S", positions + config.position_offset)
        elif config.positions == "sinusoid":
            x = x + sinusoid(positions, config.d_model).astype(x.dtype)
        elif config.positions == "sinusoid_t2t":
            waves = sinusoid(positions + config.position_offset, config.d_model, last=True)
            x = x + waves.astype(x.dtype)
        if config.token_types:
            types = jnp.zeros_like(tokens) if types is None else types
            x = x + self._row("types", config.token_types, "Y", types)
        if config.embed_norm == "norm":
            x = Norm(config, name="norm")(x)
        return x, table

    def _row(self, name: str, rows: int, letter: str, ids: jax.Array) -> jax.Array:
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        shape = (rows, config.d_model)
        table = weight(self, name, shape, f"{letter}D", normal, config.param_dtype)
        return lookup(table, ids, dtype=config.compute_dtype, axes=f"{letter}D")
