"""The inputs of a layer besides the residual stream and the cache; all layers share them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxgen.nn.tap import Interventions, Place
from jaxgen.ops.cache import Cache
from jaxgen.ops.masks import AttentionMask
from jaxgen.ops.memory import Memory

# What travels through the depth: the residual stream [B, T, D], or what a sublayer makes of it, and
# the cache of all layers.
Carry = tuple[jax.Array, Cache | None]
Layer = jax.Array | int  # its number


class LayerContext(NamedTuple):
    """Positions, attention masks and an encoder's output.

    positions: [B, T]. masks: one for each kind of the layer pattern. bias: [B, N, T, S], added to
    scores. memory: None also where the cache holds its keys already; cross_mask: the mask over it.
    interventions: on the activations of layers. first: the number of the layer that counts as 0,
    where a step of layers has a cache of its own; None: 0. buckets: [B, T, S] of distances, where
    each layer has biases of its own for them, or queries and keys from vectors [R, D] of them.
    segments: [B, T], 0 for padding. keys: (keys, values) of an earlier layer, which this one has
    instead of its own. layer_vectors: [L, B, T, Z], of tokens for each layer.
    """

    positions: jax.Array
    masks: tuple[AttentionMask, ...]
    bias: jax.Array | None = None
    memory: Memory | None = None
    cross_mask: AttentionMask | None = None
    interventions: Interventions | None = None
    first: Any = None
    buckets: jax.Array | None = None
    segments: jax.Array | None = None
    vectors: jax.Array | None = None
    keys: tuple[jax.Array, jax.Array] | None = None
    layer_vectors: jax.Array | None = None

    def number(self, layer: Layer) -> Layer:
        """Return a layer's number in the model."""
        return layer if self.first is None else layer + self.first

    def place(self, layer: Layer) -> Place:
        """Return the interventions on a layer's activations, and its number in the model."""
        return self.interventions, self.number(layer)
