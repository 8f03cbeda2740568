"""One layer: attention and feed-forward around the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.config import ModelConfig
from jaxgen.config_experts import Experts as ExpertsConfig
from jaxgen.config_groups import LayerKind
from jaxgen.mesh import constrain
from jaxgen.nn.attend import Attend, CrossAttend, Keys
from jaxgen.nn.delta import Delta
from jaxgen.nn.drop import Drop
from jaxgen.nn.experts import Experts
from jaxgen.nn.feed import Feed
from jaxgen.nn.latent import LatentAttend
from jaxgen.nn.layer_context import Carry, Layer, LayerContext
from jaxgen.nn.norm import Norm
from jaxgen.nn.residual import Laurel, LayerInput, Streams
from jaxgen.nn.tap import Place, tap
from jaxgen.nn.weight import weight


class Block(nn.Module):
    """Attention, in a decoder with an encoder that to its memory, then feed-forward.

    Each is normalised where the config says; normed: attention reads what is normalised already.
    """

    config: ModelConfig
    deterministic: bool
    kind: str
    normed: bool = False

    @nn.compact
    def __call__(
        self, carry: Carry, layer: Layer, context: LayerContext
    ) -> tuple[Carry, Keys | None]:
        """Return (carry, keys); the context holds this layer's mask.

        keys: of the layer, with their values, where a later one of the period has them as well;
        else None, as a scan wants.
        """
        config = self.config.of_kind(self.kind)
        x, cache = carry
        streams = None
        if config.residual.streams > 1:
            streams = Streams(config, self.deterministic, name="streams")
        predicted = x if streams is None else streams.predict(x)
        x = x if streams is None else predicted[..., 0, :]
        mixer = Attend if config.latent is None else LatentAttend
        mixer = Delta if config.mixer(self.kind) == "delta" else mixer
        attend = mixer(config, self.deterministic, self.kind, name="attn")
        x = constrain(x, "BTD")
        place = context.place(layer)
        normed = x if self.normed else self._before("attn", x)
        (y, cache), keys = attend((normed, cache), layer, context)
        keys = keys if config.are_read(self.kind) else None
        if config.parallel != "none":
            stream = x
            if config.parallel == "two_norms":
                normed = self._before("feed", x)
            x = self._after("attn", x, y, place)
            x = self._after("feed", x, self._feed(normed, stream, context, place), place)
            return (tap(self, "out", x, *place), cache), keys
        x = self._after("attn", x, y, place)
        if config.residual.laurel is not None:
            x = (x + Laurel(config, name="laurel")(normed)) * jnp.asarray(2**-0.5, x.dtype)
        if config.topology == "encoder_decoder":
            cross = CrossAttend(config, self.deterministic, name="cross")
            y, cache = cross((self._before("cross", x), cache), layer, context)
            x = self._after("cross", x, y, place)
        normed = self._before("feed", x)
        x = self._after("feed", x, self._feed(normed, x, context, place), place)
        x = x if streams is None else streams.correct(predicted, x)
        x = self._left(x, streams, context, layer)
        return (tap(self, "out", x, *place), cache), keys

    def _left(
        self, x: jax.Array, streams: Streams | None, context: LayerContext, layer: Layer
    ) -> jax.Array:
        """Return the stream, or streams, with the layer's own vectors, times its gain."""
        config = self.config
        if context.layer_vectors is not None:
            number = context.number(layer)
            vectors = lax.dynamic_index_in_dim(context.layer_vectors, number, keepdims=False)
            first = x if streams is None else streams.scaled(x[..., 0, :])
            y = LayerInput(config, name="per_layer")(first, vectors)
            x = x + y if streams is None else x.at[..., 1:, :].add(y[..., None, :])
        if config.residual.gain == "learned":
            ones = nn.initializers.ones
            x = x * weight(self, "gain", (), "", ones, config.param_dtype).astype(x.dtype)
        return x

    def _feed(
        self, x: jax.Array, stream: jax.Array, context: LayerContext, place: Place
    ) -> jax.Array:
        config = self.config.of_kind(self.kind)
        if config.experts.are_in(config, self.kind):
            return Experts(config, name="experts")(x, stream, context.segments)
        kind = config.kinds.get(self.kind, LayerKind())
        return Feed(config, sparsity=kind.sparsity, name="feed")(x, place)

    def _before(self, name: str, x: jax.Array) -> jax.Array:
        if self.config.norm_at in ("post", "out"):
            return x
        return Norm(self.config, name=f"{name}_norm")(x)

    def _after(self, name: str, x: jax.Array, y: jax.Array, place: Place) -> jax.Array:
        config = self.config
        y = tap(self, f"{name}_out", y, *place)
        if config.norm_at in ("both", "out"):
            y = Norm(config, name=f"{name}_out_norm")(y)
        if config.residual_scale != 1:
            y = y * jnp.asarray(config.residual_scale, y.dtype)
        x = x + Drop(config.dropout, self.deterministic)(y)
        return Norm(config, name=f"{name}_norm")(x) if config.norm_at == "post" else x


class Leading(nn.Module):
    """The layers before those that are alike: blocks "0", "1", ... one after another.

    They are dense where the others have experts, or the first one follows the norm of embeddings.
    """

    config: ModelConfig
    deterministic: bool
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, carry: Carry, context: LayerContext) -> Carry:
        """Return the carry after `config.leading` layers."""
        config, (x, cache) = self.config, carry
        period = len(config.pattern)
        for layer in range(config.leading):
            block = self.block(*_of_layer(config, self.deterministic, layer), name=str(layer))
            own = context._replace(masks=(context.masks[layer % period],))
            if cache is None or not cache.is_unrolled:
                (x, cache), _ = block((x, cache), layer, own)
                continue
            step, inside = divmod(layer, period)  # an unrolled cache counts its own layers from 0
            own = own._replace(first=jnp.int32(step * period))
            (x, part), _ = block((x, cache.step(step)), inside, own)
            cache = cache.after(step, part)
        return x, cache


def _of_layer(
    config: ModelConfig, deterministic: bool, layer: int
) -> tuple[ModelConfig, bool, str, bool]:
    """Return the arguments of a layer's `Block`."""
    inside = _dense(config) if layer < config.experts.first_dense else config
    normed = layer == 0 and config.embed.norm == "first"
    return inside, deterministic, config.pattern[layer % len(config.pattern)], normed


def single(config: ModelConfig, layer: int, *, name: str) -> Block:
    """Return the `Block` of one layer without dropout."""
    return Block(*_of_layer(config, True, layer), name=name)


def _dense(config: ModelConfig) -> ModelConfig:
    """Return the config of a layer without experts."""
    kinds = {name: replace(kind, feed=None) for name, kind in config.kinds.items()}
    return config.replace(experts=ExpertsConfig(), kinds=kinds)


class Period(nn.Module):
    """One period of a layer pattern: blocks "0", "1", ... one after another."""

    config: ModelConfig
    deterministic: bool
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, carry: Carry, layer: Layer, context: LayerContext) -> tuple[Carry, None]:
        """Return (carry, None) after one layer for each mask of the context."""
        keys: dict[str | None, Keys | None] = {}
        for index, mask in enumerate(context.masks):
            kind = self.config.pattern[index]
            block = self.block(self.config, self.deterministic, kind, name=str(index))
            giver = self.config.kinds.get(kind, LayerKind()).keys_of
            own = context._replace(masks=(mask,), keys=keys.get(giver))
            carry, keys[kind] = block(carry, layer + index, own)
        return carry, None
