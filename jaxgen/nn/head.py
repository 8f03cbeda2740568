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

HEAD_ACTIVATIONS = ACTIVATIONS | {"tanh": jnp.tanh}


class Unembed(nn.Module):
    """The table that makes token logits: the embedding's, or one of its own, and a bias if any.

    Where the embedding has a width of its own, features are projected to it.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, embedding: Any) -> tuple[jax.Array, Any]:
        """Return (features [B, T, D], table [V, D] or a `Biased` one) for x [B, T, D]."""
        config = self.config
        if config.head == "lm" and config.embed.width is not None:
            normal = nn.initializers.normal(config.init_std)
            shape = (x.shape[-1], config.embed_width)
            project_DD = weight(self, "project", shape, "DD", normal, config.param_dtype)
            x = contract("BTD,DF->BTF", x, project_DD, dtype=config.compute_dtype)
        table = token_table(self, config) if config.output == "untied" else embedding
        if config.output_bias == "none":
            return x, table
        zeros = nn.initializers.zeros
        bias = weight(self, "bias", (config.V,), "V", zeros, config.param_dtype)
        return x, Biased(table, bias)


class Head(nn.Module):
    """The head of tokens, of a text's or a token's class, or of spans."""

    config: ModelConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array | None) -> tuple[jax.Array, Any]:
        """Return (features, table): logits are features times table.

        mlm, lm: features [B, T, D], table None. classes: [B, 1, D] and [C, D]: of the first token
        of an encoder (or the last, or the mean of all), of the last that is no padding of a
        decoder. token_classes: [B, T, D] and [C, D]. spans: [B, T, D] and [2, D]. pooled:
        [B, 1, D], None: BERT's pooler.
        """
        config = self.config
        if config.head in ("classes", "pooled"):
            x = self._pooled(x, segments)
        if config.head_kind != "none":
            x = self._dense(x)
        drops = config.head == "token_classes" or config.head_kind != "none"
        if drops and config.head not in ("mlm", "lm"):
            x = Drop(config.dropout, self.deterministic)(x)
        if config.head in ("mlm", "lm", "pooled"):
            return x, None
        return x, self._table(2 if config.head == "spans" else config.classes or 0)

    def _pooled(self, x: jax.Array, segments: jax.Array | None) -> jax.Array:
        """Return the vector [B, 1, D] of each row of x [B, T, D]."""
        pool = self.config.head_layer.pool
        if self.config.topology != "encoder" or pool == "last":
            return _last(x, segments)
        if pool == "first":
            return x[:, :1]
        real = jnp.ones(x.shape[:2], bool) if segments is None else segments > 0
        mean = jnp.mean(x, axis=1, keepdims=True, where=real[..., None], dtype=jnp.float32)
        return mean.astype(x.dtype)

    def _dense(self, x: jax.Array) -> jax.Array:
        """Return x behind the dense layer, its activation, and its norm if it has one."""
        config = self.config
        # Features of token logits have the width of the table that they are multiplied with.
        width = config.embed_width if config.head == "mlm" else config.d_model
        shape = (config.d_model, width)
        normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
        dense_DD = weight(self, "dense", shape, "DD", normal, config.param_dtype)
        y = contract("BTD,DF->BTF", x, dense_DD, dtype=config.compute_dtype)
        if config.head_layer.bias == "bias":
            bias = weight(self, "dense_bias", shape[1:], "D", zeros, config.param_dtype)
            y = add_bias(y, bias)
        y = HEAD_ACTIVATIONS[config.head_activation](y)
        return Norm(config, name="norm")(y) if config.head_kind == "norm" else y

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
