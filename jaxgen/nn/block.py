"""One layer: attention and feed-forward around the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.config import ModelConfig
from jaxgen.config_experts import Experts as ExpertsConfig
from jaxgen.mesh import constrain
from jaxgen.nn.attend import Attend, CrossAttend
from jaxgen.nn.delta import Delta
from jaxgen.nn.drop import Drop
from jaxgen.nn.experts import Experts
from jaxgen.nn.feed import Feed
from jaxgen.nn.latent import LatentAttend
from jaxgen.nn.layer_context import Carry, Layer, LayerContext
from jaxgen.nn.norm import Norm
from jaxgen.nn.tap import Interventions, tap


class Block(nn.Module):
    """Attention, in a decoder with an encoder that to its memory, then feed-forward.

    Each is normalised where the config says; normed: attention reads what is normalised already.
    """

    config: ModelConfig
    deterministic: bool
    kind: str
    normed: bool = False

    @nn.compact
    def __call__(self, carry: Carry, layer: Layer, context: LayerContext) -> tuple[Carry, None]:
        """Return (carry, None), as a scan wants; the context holds this layer's mask."""
        config = self.config
        x, cache = carry
        mixer = Attend if config.latent is None else LatentAttend
        mixer = Delta if config.mixer(self.kind) == "delta" else mixer
        attend = mixer(config, self.deterministic, self.kind, name="attn")
        x = constrain(x, "BTD")
        number = layer if context.first is None else layer + context.first
        place = context.interventions, number
        normed = x if self.normed else self._before("attn", x)
        y, cache = attend((normed, cache), layer, context)
        if config.parallel != "none":
            if config.parallel == "two_norms":
                normed = self._before("feed", x)
            x = self._after("attn", x, y, place)
            x = self._after("feed", x, self._feed(normed, context), place)
            return (tap(self, "out", x, *place), cache), None
        x = self._after("attn", x, y, place)
        if config.topology == "encoder_decoder":
            cross = CrossAttend(config, self.deterministic, name="cross")
            y, cache = cross((self._before("cross", x), cache), layer, context)
            x = self._after("cross", x, y, place)
        x = self._after("feed", x, self._feed(self._before("feed", x), context), place)
        return (tap(self, "out", x, *place), cache), None

    def _feed(self, x: jax.Array, context: LayerContext) -> jax.Array:
        if self.config.experts.are_in(self.config, self.kind):
            return Experts(self.config, name="experts")(x, context.segments)
        return Feed(self.config, name="feed")(x)

    def _before(self, name: str, x: jax.Array) -> jax.Array:
        if self.config.norm_at in ("post", "out"):
            return x
        return Norm(self.config, name=f"{name}_norm")(x)

    def _after(
        self, name: str, x: jax.Array, y: jax.Array, place: tuple[Interventions | None, Any]
    ) -> jax.Array:
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
            kind, normed = (
                config.pattern[layer % period],
                layer == 0 and config.embed.norm == "first",
            )
            inside = _dense(config) if layer < config.experts.first_dense else config
            block = self.block(inside, self.deterministic, kind, normed, name=str(layer))
            own = context._replace(masks=(context.masks[layer % period],))
            if cache is None or not cache.is_unrolled:
                (x, cache), _ = block((x, cache), layer, own)
                continue
            step, inside = divmod(layer, period)  # an unrolled cache counts its own layers from 0
            own = own._replace(first=jnp.int32(step * period))
            (x, part), _ = block((x, cache.step(step)), inside, own)
            cache = cache.after(step, part)
        return x, cache


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
        for index, mask in enumerate(context.masks):
            kind = self.config.pattern[index]
            block = self.block(self.config, self.deterministic, kind, name=str(index))
            carry, _ = block(carry, layer + index, context._replace(masks=(mask,)))
        return carry, None
