"""The Transformer up to its logits: one tower, or an encoder and its decoder."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.mesh import constrain
from jaxgen.nn.block import single
from jaxgen.nn.drop import Drop
from jaxgen.nn.embed import Embed, Tokens
from jaxgen.nn.feed import activate
from jaxgen.nn.head import Head, Unembed
from jaxgen.nn.layer_context import LayerContext
from jaxgen.nn.norm import Norm
from jaxgen.nn.relative import Relative, Vectors, buckets_of
from jaxgen.nn.residual import LayerVectors, Spread
from jaxgen.nn.stack import through_layers
from jaxgen.nn.stem import Stem
from jaxgen.nn.tap import Interventions, tap
from jaxgen.nn.weight import weight
from jaxgen.ops import cache as caches
from jaxgen.ops.contract import add_bias, contract
from jaxgen.ops.experts import RouterStats
from jaxgen.ops.masks import Order, cross_mask, make_mask
from jaxgen.ops.memory import Memory
from jaxgen.ops.perturbed import of_source
from jaxgen.ops.positions import slopes

Part = Literal["encode", "decode"]


class Inputs(NamedTuple):
    """Inputs of a tower: tokens and positions [B, T], and optional arrays.

    prefix: [B, T], 1 for tokens that earlier tokens attend to as well. order: static knowledge of
    the positions, see `ops.masks.AttentionMask`. embeds: [B, T, D], instead of the rows of tokens,
    of which only the shape counts then. num_virtual: static, tokens before these of which layers
    have keys and values (`ops/adapted.py`). state: [B, T, D], instead of what the layers make of
    these, for the last norm and the head alone. media: sound or images [B, ...] that the config's
    stem reads instead of tokens, of which only the shape counts then; or the images of each row
    [B, M, ...] of a decoder with vision, in the places of its token.
    """

    tokens: jax.Array
    positions: jax.Array
    segments: jax.Array | None = None
    types: jax.Array | None = None
    cache: caches.Cache | None = None
    memory: Memory | None = None
    prefix: jax.Array | None = None
    order: Order = "free"
    embeds: jax.Array | None = None
    interventions: Interventions | None = None
    num_virtual: int = 0
    state: jax.Array | None = None
    media: jax.Array | None = None


class Hidden(NamedTuple):
    """The last hidden states, the factors of the logits, and the cache.

    Logits are `ops.losses.unembed(features, table)`; without a head, table is None. router: sums
    over the tokens of each layer with experts, stacked, where they are asked for; taps: so as well.
    """

    state: jax.Array
    features: jax.Array
    table: Any
    cache: caches.Cache | None
    router: RouterStats | None = None
    taps: dict[str, jax.Array] = {}  # noqa: RUF012


class Transformer(nn.Module):
    """A Transformer; `part` says which tower of an encoder-decoder is meant."""

    config: ModelConfig
    deterministic: bool
    part: Part = "decode"

    @nn.compact
    def __call__(self, inputs: Inputs) -> Hidden:
        """Return hidden states [B, T, D] of the inputs."""
        config = self.config
        if config.topology == "encoder_decoder" and self.part == "encode":
            shared = config.towers.tokens == "shared" and config.stem is None
            table = Tokens(config, name="embed")() if shared else None
            encoder = Encoder(config.encoder(), self.deterministic, name="encoder")
            x = encoder(inputs, of_source(table))
            return Hidden(x, x, None, None)
        x, table, cache = _tower(self, inputs, None)
        features, table = self._head(x, table, inputs.segments)
        return Hidden(x, features, table, cache)

    def _head(self, x: jax.Array, table: Any, segments: jax.Array | None) -> tuple[Any, Any]:
        config = self.config
        if config.head == "none":
            return x, None
        if config.head in ("classes", "token_classes", "spans", "pooled"):
            return Head(config, self.deterministic, name="head")(x, segments)
        if config.head_kind != "none":
            x, _ = Head(config, self.deterministic, name="head")(x, segments)
        if config.output_scale == "root":
            x = x * config.d_model**-0.5
        elif config.output_scale != "one":
            x = x / jnp.asarray(config.output_scale, x.dtype)
        return Unembed(config, name="unembed")(x, table)


class Encoder(nn.Module):
    """The encoder of an encoder-decoder, which shares the decoder's token table."""

    config: ModelConfig
    deterministic: bool

    @nn.compact
    def __call__(self, inputs: Inputs, table: Any) -> jax.Array:
        """Return the last hidden states [B, T, D]."""
        return _tower(self, inputs, table)[0]


class Vision(nn.Module):
    """The tower over images, and two layers that give its vectors the width of the decoder's."""

    config: ModelConfig
    deterministic: bool

    @nn.compact
    def __call__(self, media: jax.Array, interventions: Interventions | None) -> jax.Array:
        """Return the vectors [B, M * vectors, D] of images [B, M, rows, columns, colours]."""
        own, tower = self.config.vision, self.config.encoder()
        assert own is not None
        x = Stem(tower, own.stem, name="stem")(media.reshape(-1, *own.stem.shape))
        places = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        inputs = Inputs(places, places, order="running", interventions=interventions)
        context, _ = _layer_context(tower, inputs)
        x, _ = through_layers(self, tower, self.deterministic, (x, None), context)
        x = Norm(tower, name="final_norm")(x) if own.norm == "norm" else x
        x = x[:, 1:] if own.kept == "patches" else x
        x = activate(own.activation, self._projected("project_in", x), None)
        x = self._projected("project_out", x)
        return x.reshape(media.shape[0], -1, x.shape[-1])

    def _projected(self, name: str, x: jax.Array) -> jax.Array:
        """Return x [B, T, ...] in the width of the decoder."""
        config = self.config
        normal, shape = nn.initializers.normal(config.init_std), (x.shape[-1], config.d_model)
        w_DD = weight(self, name, shape, "DD", normal, config.param_dtype)
        x = contract("BTD,DF->BTF", x, w_DD, dtype=config.compute_dtype)
        if config.vision is not None and config.vision.bias == "none":
            return x
        zeros = nn.initializers.zeros
        return add_bias(x, weight(self, f"{name}_bias", shape[1:], "D", zeros, config.param_dtype))


def _with_images(config: ModelConfig, x: jax.Array, tokens: jax.Array, seen: jax.Array):
    """Return x [B, T, D] with the vectors seen [B, S, D] in the places of their token, in order."""
    assert config.vision is not None
    is_place = tokens == config.vision.token
    number = jnp.cumsum(is_place, axis=1) - 1
    is_place &= number < seen.shape[1]
    own = jnp.take_along_axis(seen, jnp.where(is_place, number, 0)[..., None], axis=1)
    return jnp.where(is_place[..., None], own.astype(x.dtype), x)


class OneLayer(nn.Module):
    """One layer of a tower by itself, whose parameters are "layer" and those all layers share."""

    config: ModelConfig
    layer: int

    @nn.compact
    def __call__(self, x: jax.Array, inputs: Inputs) -> jax.Array:
        """Return the residual stream [B, T, D] after the layer, for that before it."""
        context, _ = _layer_context(self.config, inputs)
        mask = context.masks[self.layer % len(context.masks)]
        block = single(self.config, self.layer, name="layer")
        (x, _), _ = block((x, None), self.layer, context._replace(masks=(mask,)))
        return x


def _tower(
    module: Transformer | Encoder, inputs: Inputs, table: Any
) -> tuple[jax.Array, Any, caches.Cache | None]:
    """Return (x, table, cache) of a tower whose parts belong to `module`."""
    config, deterministic = module.config, module.deterministic
    if config.stem is not None and config.topology == "encoder":
        x, table = Stem(config, config.stem, name="stem")(inputs.media), None
    else:
        embed = Embed(config, name="embed")
        x, table = embed(inputs.tokens, inputs.positions, inputs.types, table, inputs.embeds)
        if config.vision is not None and inputs.media is not None:
            vision = Vision(config, deterministic, name="vision")
            seen = vision(inputs.media, inputs.interventions)
            x = _with_images(config, x, inputs.tokens, seen)
    if inputs.state is not None:
        return _normed(config, inputs.state.astype(x.dtype)), table, None
    x = tap(module, "embedded", x, inputs.interventions)
    x = Drop(config.dropout, deterministic)(constrain(x, "BTD"))
    context, cache = _layer_context(config, inputs)
    if config.per_layer is not None:
        vectors = LayerVectors(config, name="per_layer")(inputs.tokens, x)
        context = context._replace(layer_vectors=vectors)
    several = config.residual.streams > 1
    if several:
        x = Spread(config, "streams", name="to_streams")(x)
    x, cache = through_layers(module, config, deterministic, (x, cache), context)
    if several:
        x = Spread(config, "one", name="to_one")(x)
    x = tap(module, "hidden", _normed(config, x), inputs.interventions)
    if cache is not None:
        cache = caches.advance(cache, inputs.tokens.shape[1])
    return x, table, cache


def _normed(config: ModelConfig, x: jax.Array) -> jax.Array:
    """Return the last layer's output [B, T, D] behind the last norm, if there is one."""
    x = x if config.norm_at == "post" else Norm(config, name="final_norm")(x)
    return constrain(x, "BTD")


def _layer_context(config: ModelConfig, inputs: Inputs) -> tuple[LayerContext, caches.Cache | None]:
    """Return the context of all layers, and the cache with the padding of the memory."""
    positions, segments = inputs.positions, inputs.segments
    cache, memory, virtual = inputs.cache, inputs.memory, inputs.num_virtual
    order, interventions = inputs.order, inputs.interventions
    count = inputs.tokens.shape[1]
    keys = [
        positions
        if cache is None or config.mixer(kind) == "delta"
        else caches.positions(cache, count, window=config.reach(kind) == "window")
        for kind in config.pattern
    ]
    if virtual and cache is not None:  # whose slots count from the first token of the text
        keys = [key + virtual for key in keys]
    direction = "both" if config.topology == "encoder" else "back"
    masks = tuple(
        make_mask(
            positions,
            key,
            direction=direction,
            window=config.window if config.reach(kind) == "window" else None,
            chunk=config.window if config.reach(kind) == "chunk" else None,
            prefix=_in_prefix(inputs),
            ancestors=None if cache is None else caches.ancestors(cache, count),
            order=order if cache is None else "free",
            query_segments=segments,
            key_segments=segments,
            num_virtual=virtual,
        )
        for key, kind in zip(keys, config.pattern, strict=True)
    )
    if virtual:
        before = jnp.broadcast_to(jnp.arange(virtual), (keys[0].shape[0], virtual))
        keys = [jnp.concatenate([before, keys[0]], axis=1)]
    bias = buckets = vectors = None
    if config.positions == "disentangled":
        vectors = Vectors(config, name="relative")()
    if config.has_relative or vectors is not None:
        buckets = buckets_of(config, positions, keys[0])
        if config.has_relative and config.relative.tables == "shared":
            bias, buckets = Relative(config, name="relative")(buckets), None
    if config.positions == "alibi":
        bias = _alibi(config, positions, keys[0])
    if config.topology != "encoder_decoder":
        reads = config.experts.number or config.delta is not None
        real = segments if reads else None
        context = LayerContext(positions, masks, bias, interventions=interventions)
        return context._replace(buckets=buckets, vectors=vectors, segments=real), cache
    if memory is not None and cache is not None:
        cache = caches.begin_cross(cache, memory.segments)
    own = jnp.ones_like(inputs.tokens) if segments is None else segments
    over_memory = cross_mask(own, _memory_segments(memory, cache))
    context = LayerContext(positions, masks, bias, memory, over_memory, interventions)
    return context._replace(buckets=buckets), cache


def _in_prefix(inputs: Inputs) -> jax.Array | None:
    """Return which keys [B, S] earlier queries attend to as well."""
    if inputs.prefix is None or inputs.cache is None:
        return None if inputs.prefix is None else inputs.prefix > 0
    # The token at position p lies in slot p.
    slots = jnp.zeros((inputs.prefix.shape[0], inputs.cache.capacity), bool)
    rows = jnp.arange(inputs.prefix.shape[0])[:, None]
    return slots.at[rows, inputs.positions].set(inputs.prefix > 0)


def _alibi(config: ModelConfig, positions: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the bias [B, N, T or 1, S] of scores that grows by each head's slope with distance."""
    slope = jnp.asarray(slopes(config.heads))[None, :, None, None]
    if config.scores.alibi == "scaled":
        # What is rounded is the key's position itself, from which distances differ by a constant.
        half = slope.astype(jnp.bfloat16) * keys[:, None, None, :].astype(jnp.bfloat16)
        return half.astype(jnp.float32) * config.score_scale
    distance = jnp.abs(positions[:, None, :, None] - keys[:, None, None, :])
    return -slope * distance.astype(jnp.float32)


def _memory_segments(memory: Memory | None, cache: caches.Cache | None) -> jax.Array:
    if memory is not None:
        return memory.segments
    assert cache is not None and cache.cross is not None
    return cache.cross.segments
