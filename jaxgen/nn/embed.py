"""Tokens to vectors, and the table that turns vectors back into logits."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import add_bias, contract, lookup
from jaxgen.ops.perturbed import unperturbed
from jaxgen.ops.positions import sinusoid


def token_table(module: nn.Module, config: ModelConfig) -> Any:
    """Return the [V, D] table `tokens` of a module, one vector per token id.

    D is the width of the model, or that of its tables where that is another.
    """
    normal = nn.initializers.normal(config.init_std)
    shape = (config.V, config.embed_width)
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

        table: that of another tower; None where the module has one of its own. embeds: instead of
        the table's rows of the tokens, of their width.
        """
        config, own = self.config, self.config.embed
        table = token_table(self, config) if table is None else table
        if embeds is None:
            x = lookup(table, tokens, dtype=config.compute_dtype)
        else:
            x = embeds.astype(config.compute_dtype)
        if own.scale == "root":
            # Rounded first, as Gemma multiplies.
            x = x * jnp.asarray(config.d_model**0.5, x.dtype)
        elif own.scale != "one":
            x = x * jnp.asarray(own.scale, x.dtype)
        if own.width is not None and own.project == "tokens":
            x = self._projected(x)
        if own.norm == "tokens":
            x = Norm(config, name="norm")(x)
        if config.has_position_table:
            rows, ids = config.context + own.offset, positions + own.offset
            x = x + self._row("positions", rows, "S", ids, x.shape[-1])
        elif config.positions == "sinusoid":
            x = x + sinusoid(positions, x.shape[-1]).astype(x.dtype)
        elif config.positions == "sinusoid_t2t":
            waves = sinusoid(positions + own.offset, x.shape[-1], last=True)
            x = x + waves.astype(x.dtype)
        if own.types:
            types = jnp.zeros_like(tokens) if types is None else types
            x = x + self._row("types", own.types, "Y", types, x.shape[-1])
        if own.norm in ("norm", "first"):
            x = Norm(config, name="norm")(x)
        if own.width is not None and own.project == "sum":
            x = self._projected(x)
        return x, unperturbed(table)

    def _projected(self, x: jax.Array) -> jax.Array:
        """Return x [B, T, width of the tables] in the model's width."""
        config = self.config
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
        shape = (x.shape[-1], config.d_model)
        project_DD = weight(self, "project", shape, "DD", normal, config.param_dtype)
        y = contract("BTD,DF->BTF", x, project_DD, dtype=config.compute_dtype)
        if config.embed.project == "tokens":
            return y
        bias = weight(self, "project_bias", shape[1:], "D", zeros, config.param_dtype)
        return add_bias(y, bias)

    def _row(self, name: str, rows: int, letter: str, ids: jax.Array, width: int) -> jax.Array:
        config = self.config
        normal = nn.initializers.normal(config.init_std)
        shape = (rows, width)
        table = weight(self, name, shape, f"{letter}D", normal, config.param_dtype)
        return lookup(table, ids, dtype=config.compute_dtype, axes=f"{letter}D")
