"""The decoder-only Transformer up to its last hidden state."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.nn.embed import Embed, Unembed
from jaxgen.nn.norm import Norm
from jaxgen.nn.stack import through_layers
from jaxgen.ops import cache as caches
from jaxgen.ops.masks import visible


class Hidden(NamedTuple):
    """The last hidden state, the [V, D] table that makes logits of it, and the cache after it."""

    state: jax.Array
    table: Any
    cache: caches.Cache | None


class Transformer(nn.Module):
    """A causal Transformer; logits are `ops.losses.unembed(state, table)`."""

    config: ModelConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
        cache: caches.Cache | None,
    ) -> Hidden:
        """Return hidden states [B, T, D] for tokens and positions [B, T]."""
        config = self.config
        x, table = Embed(config, name="embed")(tokens, positions)
        x = nn.Dropout(config.dropout, deterministic=self.deterministic)(x)
        keys = positions if cache is None else jnp.arange(cache.capacity)[None]
        masks = tuple(
            visible(positions, keys, window=window, query_segments=segments, key_segments=segments)
            for window in config.windows()
        )
        x, cache = through_layers(config, self.deterministic, (x, cache), positions, masks)
        if config.norm_at != "post":
            x = Norm(config, name="final_norm")(x)
        if config.output == "untied":
            table = Unembed(config, name="unembed")()
        self.sow("taps", "hidden", x)
        if cache is not None:
            cache = caches.advance(cache, tokens.shape[1])
        return Hidden(x, table, cache)
