"""Heads: from hidden states to logits of tokens, classes or spans."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.nn.drop import Drop
from jaxgen.nn.embed import token_table
from jaxgen.nn.norm import Norm
from jaxgen.nn.weight import weight
from jaxgen.ops.contract import Biased, add_bias, contract
from jaxgen.ops.gates import ACTIVATIONS


class Unembed(nn.Module):
    """The table that makes token logits: the embedding's, or one of its own, and a bias if any."""

    config: ModelConfig

    @nn.compact
    def __call__(self, embedding: Any) -> Any:
        """Return a [V, D] table, or a `Biased` one."""
        config = self.config
        table = token_table(self, config) if config.output == "untied" else embedding
        if config.output_bias == "none":
            return table
        zeros = nn.initializers.zeros
        return Biased(table, weight(self, "bias", (config.V,), "V", zeros, config.param_dtype))


class Head(nn.Module):
    """The head of an encoder's masked tokens, of a text's or a token's class, or of spans."""

    config: ModelConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array | None) -> tuple[jax.Array, Any]:
        """Return (features, table): logits are features times table.

        mlm: features [B, T, D], table None. classes: [B, 1, D] and [C, D]: of the first token of
        an encoder, of the last that is no padding of a decoder. token_classes: [B, T, D] and
        [C, D]. spans: [B, T, D] and [2, D]. pooled: [B, 1, D], None: BERT's pooler.
        """
        config = self.config
        if config.head == "mlm":
            y = self._dense(x)
            return Norm(config, name="norm")(ACTIVATIONS[config.head_activation](y)), None
        if config.head == "spans":
            return x, self._table(2)
        drop = Drop(config.dropout, self.deterministic)
        if config.head == "token_classes":
            return drop(x), self._table(config.classes or 0)
        x = x[:, :1] if config.topology == "encoder" else _last(x, segments)
        if config.topology != "decoder":
            x = drop(jnp.tanh(self._dense(x)))
        return x, None if config.head == "pooled" else self._table(config.classes or 0)

    def _dense(self, x: jax.Array) -> jax.Array:
        config = self.config
        shape = (config.d_model, config.d_model)
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
        dense_DD = weight(self, "dense", shape, "DD", normal, config.param_dtype)
        y = contract("BTD,DF->BTF", x, dense_DD, dtype=config.compute_dtype)
        bias = weight(self, "dense_bias", shape[1:], "D", zeros, config.param_dtype)
        return add_bias(y, bias)

    def _table(self, number: int) -> Any:
        config = self.config
        shape = (number, config.d_model)
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
        out_CD = weight(self, "out", shape, "CD", normal, config.param_dtype)
        if config.topology == "decoder" and config.head == "classes":
            return out_CD
        return Biased(out_CD, weight(self, "out_bias", (number,), "C", zeros, config.param_dtype))


def _last(x: jax.Array, segments: jax.Array | None) -> jax.Array:
    """[B, T, D] -> [B, 1, D]: the last token of each row that is no padding."""
    if segments is None:
        return x[:, -1:]
    places = jnp.where(segments > 0, jnp.arange(x.shape[1]), 0)
    return jnp.take_along_axis(x, jnp.max(places, axis=1)[:, None, None], axis=1)
