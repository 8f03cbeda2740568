"""Attention: projections around `ops.attention`, and the cache between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.config_groups import LayerKind
from jaxgen.mesh import constrain
from jaxgen.nn.drop import Drop
from jaxgen.nn.layer_context import Carry, Layer, LayerContext
from jaxgen.nn.norm import Norm
from jaxgen.nn.relative import Relative
from jaxgen.nn.tap import Place, is_intervened, is_tapped, tap
from jaxgen.nn.weight import weight
from jaxgen.ops import cache as caches
from jaxgen.ops.adapted import after_virtual
from jaxgen.ops.attention import attend, plain
from jaxgen.ops.contract import add_bias, contract
from jaxgen.ops.masks import AttentionMask
from jaxgen.ops.norms import unit_norm
from jaxgen.ops.positions import rotate
from jaxgen.ops.random import dropout

Projection = Callable[[jax.Array], jax.Array]
Keys = tuple[jax.Array, jax.Array]  # of all tokens that queries may see, and their values


class Attend(nn.Module):
    """Grouped-query self-attention."""

    config: ModelConfig
    deterministic: bool
    kind: str

    @nn.compact
    def __call__(
        self, carry: Carry, layer: Layer, context: LayerContext
    ) -> tuple[Carry, Keys | None]:
        """Return ((out [B, T, D], cache), keys); the one mask is over the cache's slots if any.

        keys: those that queries met and their values, which a later layer may have as well.
        """
        x, cache = carry
        config, keys = self.config, context.keys
        own = config.kinds.get(self.kind, LayerKind())
        to_q = projection(self, "q", config.heads, "N")
        if keys is None:
            to_k = projection(self, "k", config.K, "K")
            q, k = to_q(x), to_k(x)
            v = k if own.values == "keys" else project(self, "v", x, config.K, "K")
            if context.vectors is not None:
                bias = self._disentangled(q, k, to_q, to_k, context)
                context = context._replace(bias=bias, buckets=None)
            q, k = self._placed("q", q, "N", context), self._placed("k", k, "K", context)
            if config.qk_norm == "qkv":
                v = unit_norm(v, epsilon=config.norm_epsilon)
            cache, *keys = extended(config, self.kind, cache, layer, k, v)
            own = (self.get_variable("params", name) for name in ("k", "v"))
            keys = [after_virtual(*pair) for pair in zip(own, keys, strict=True)]
        else:
            q = self._placed("q", to_q(x), "N", context)
        k, v = keys
        grows = config.scores.growth_in == "all" or not config.turns(self.kind)
        if config.scores.growth is not None and grows:
            q = q * _growth(config, context.positions).astype(q.dtype)
        if config.scores.by_layer == "inverse":
            q = q / jnp.asarray(context.number(layer) + 1, q.dtype)
        place = context.place(layer)
        v = tap(self, "values", v, *place)
        out = attend_and_tap(self, q, k, v, context.masks[0], place, **options(self, context, x))
        if config.scores.gate == "sigmoid":
            gate = project(self, "gate", x, config.heads, "N").astype("float32")
            out = (out.astype("float32") * jax.nn.sigmoid(gate)).astype(out.dtype)
        return (output(self, out, place), cache), (k, v)

    def _placed(self, name: str, x: jax.Array, letter: str, context: LayerContext) -> jax.Array:
        """Return queries or keys [B, T, N, H] normalised, and turned by their positions."""
        config = self.config
        x = self._normed(f"{name}_norm", x, letter)
        if (rope := config.rope_of(self.kind)) is not None:
            x = rotate(x, context.positions, rope)
        unit = config.qk_norm == "unit" and config.turns(self.kind)
        return unit_norm(x, epsilon=config.norm_epsilon) if unit else x

    def _disentangled(
        self, q: jax.Array, k: jax.Array, to_q: Projection, to_k: Projection, context: LayerContext
    ) -> jax.Array:
        """Return the scores [B, N, T, S] of queries and keys with the vectors of distances."""
        config, own = self.config, self.config.disentangled
        assert context.vectors is not None and context.buckets is not None
        vectors, rows = context.vectors[None], context.buckets[:, None]
        bias = jnp.zeros((), jnp.float32)
        if "query" in own.terms:
            if own.keys == "own":
                to_k = projection(self, "position_k", config.K, "K")
            far = _expanded(to_k(vectors), config.heads)[0]
            scores = jnp.einsum("BTNH,RNH->BNTR", q, far, preferred_element_type=jnp.float32)
            bias += jnp.take_along_axis(scores, rows, axis=-1)
        if "key" in own.terms:
            if own.keys == "own":
                to_q = projection(self, "position_q", config.heads, "N")
            far, k = to_q(vectors)[0], _expanded(k, config.heads)
            scores = jnp.einsum("BSNH,RNH->BNSR", k, far, preferred_element_type=jnp.float32)
            bias += jnp.take_along_axis(scores, rows.mT, axis=-1).mT
        return bias * config.score_scale

    def _normed(self, name: str, x: jax.Array, letter: str) -> jax.Array:
        """Return queries or keys [B, T, N, H] behind their norm, if the config has one."""
        kind = self.config.qk_norm
        if kind in ("none", "unit"):
            return x
        axes = "H" if kind in ("head", "qkv") else f"{letter}H"
        return Norm(self.config, axes=axes, joint=kind == "heads", name=name)(x)


def _growth(config: ModelConfig, positions: jax.Array) -> jax.Array:
    """Return the factors [B, T, 1, 1] of queries at positions [B, T]."""
    own = config.scores
    spans = jnp.floor((positions + own.growth_first).astype(jnp.float32) / own.growth_span)
    return (1 + own.growth * jnp.log1p(spans))[..., None, None]


class CrossAttend(nn.Module):
    """Attention from a decoder's tokens to an encoder's memory."""

    config: ModelConfig
    deterministic: bool

    @nn.compact
    def __call__(self, carry: Carry, layer: Layer, context: LayerContext) -> Carry:
        """Return (out [B, T, D], cache); keys are of the context's memory, else the cache's."""
        x, cache = carry
        config = self.config
        q = project(self, "q", x, config.heads, "N")
        if context.memory is not None:
            k = project(self, "k", context.memory.state, config.K, "K")
            v = project(self, "v", context.memory.state, config.K, "K")
            if cache is not None:
                cache = caches.write_cross(cache, layer, k, v)
        else:
            assert cache is not None
            k, v = caches.read_cross(cache, layer)
        assert context.cross_mask is not None
        drop = Drop(config.score_dropout, self.deterministic).active
        drop = None if drop is None else drop.rng(x.shape[0])
        scale, cap = config.score_scale, config.scores.cap
        place = context.place(layer)
        v = tap(self, "values", v, *place)
        out = attend_and_tap(
            self, q, k, v, context.cross_mask, place, scale=scale, cap=cap, drop=drop
        )
        return output(self, out, place), cache


def extended(
    config: ModelConfig,
    kind: str,
    cache: caches.Cache | None,
    layer: Layer,
    k: jax.Array,
    v: jax.Array,
) -> tuple[caches.Cache | None, jax.Array, jax.Array]:
    """Return the cache with one layer's new keys and values, and all that their queries may see."""
    if cache is None:
        return None, k, v
    index = cache_index(config, kind, cache, layer)
    return caches.extend(cache, index, k, v, window=config.reach(kind) == "window")


def options(module: Any, context: LayerContext, x: jax.Array) -> dict[str, Any]:
    """Return what `ops.attention.attend` takes besides queries, keys, values and mask."""
    config: ModelConfig = module.config
    sinks = None
    if config.scores.sinks == "learned":
        normal = nn.initializers.normal(config.init_std)
        sinks = weight(module, "sinks", (config.heads,), "N", normal, config.param_dtype)
    drop = Drop(config.score_dropout, module.deterministic).active
    bias = context.bias
    if context.buckets is not None:
        bias = Relative(config, name="relative")(context.buckets)
    return {
        "scale": config.score_scale,
        "cap": config.scores.cap,
        "drop": None if drop is None else drop.rng(x.shape[0]),
        "bias": bias,
        "sinks": sinks,
    }


def cache_index(
    config: ModelConfig, kind: str, cache: caches.Cache | None, layer: Layer
) -> jax.Array | int:
    """Return a layer's number among those that have the same part of a cache as its kind."""
    if cache is None:
        return layer

    def part(kind: str) -> tuple[str, bool] | None:
        if config.shares_keys(kind):
            return None
        return config.mixer(kind), cache.sliding is not None and config.reach(kind) == "window"

    if len({*map(part, config.pattern)}) == 1:
        return layer
    period, index = len(config.pattern), layer % len(config.pattern)
    before = np.cumsum([0, *(part(one) == part(kind) for one in config.pattern)])
    return layer // period * before[-1] + jnp.asarray(before)[index]


def projection(
    module: Any,
    name: str,
    heads: int,
    letter: str,
    *,
    width: int | None = None,
    bias: bool = True,
) -> Projection:
    """Return x [B, T, D] -> heads [B, T, heads, H]; see `project`. width: D; None: the model's."""
    config = module.config
    shape = (width or config.d_model, heads, config.H)
    normal, zeros = nn.initializers.normal(config.init_std), nn.initializers.zeros
    w_DNH = weight(module, name, shape, f"D{letter}H", normal, config.param_dtype)
    added = None
    if bias and config.has_bias("qkv" if name == "k" else "qv"):
        added = weight(module, f"{name}_bias", shape[1:], f"{letter}H", zeros, config.param_dtype)

    def project(x: jax.Array) -> jax.Array:
        y = contract(f"BTD,D{letter}H->BT{letter}H", x, w_DNH, dtype=config.compute_dtype)
        y = y if added is None else add_bias(y, added)
        # Queries stay with their positions; every device that shares a row needs all of its keys.
        return constrain(y, "BTNH" if letter == "N" else "BSKH")

    return project


def project(
    module: Any, name: str, x: jax.Array, heads: int, letter: str, *, bias: bool = True
) -> jax.Array:
    """Return x [B, T, D] as heads [B, T, heads, H], through the weight `name` of a module.

    bias: whether it has one where the config gives them to queries, keys and values.
    """
    return projection(module, name, heads, letter, width=x.shape[-1], bias=bias)(x)


def _expanded(k: jax.Array, heads: int) -> jax.Array:
    """Return keys [B, S, K, H] once for each query head."""
    return k if k.shape[2] == heads else jnp.repeat(k, heads // k.shape[2], axis=2)


def attend_and_tap(
    module: Any,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: AttentionMask,
    place: Place,
    **options: Any,
) -> jax.Array:
    """Return attention's output [B, T, N, H]; its probabilities [B, N, T, S] are the tap `probs`.

    Kernels keep no probabilities, so those of the tap are computed beside them, by the formula
    itself; an intervention on them takes the formula's way.
    """
    changed = is_intervened(module, "probs", place[0])
    out = None if changed else attend(q, k, v, mask, **options)
    if out is not None and not is_tapped(module):
        return out
    drop = options.pop("drop")
    probs = plain.probabilities(q, k, mask.allowed, **options)
    heads = probs.reshape(probs.shape[0], -1, *probs.shape[3:])
    heads = tap(module, "probs", heads, *place)
    if out is not None:
        return out
    probs = heads.reshape(probs.shape)
    return plain.weigh(probs if drop is None else dropout(probs, drop), v)


def output(module: Any, x: jax.Array, place: Place) -> jax.Array:
    """Return heads [B, T, N, H] back in the model's width, through a module's weight `o`."""
    config, x = module.config, tap(module, "heads", x, *place)
    shape = (config.heads, x.shape[-1], config.d_model)
    # GPT-2: the residual stream sums 2 * layers outputs, so each starts smaller.
    normal = nn.initializers.normal(config.init_std / (2 * config.layers) ** 0.5)
    o_NHD = weight(module, "o", shape, "NHD", normal, config.param_dtype)
    y = contract("BTNH,NHD->BTD", constrain(x, "BTNH"), o_NHD, dtype=config.compute_dtype)
    if config.has_bias("o"):
        zeros = nn.initializers.zeros
        bias = weight(module, "o_bias", (config.d_model,), "D", zeros, config.param_dtype)
        y = add_bias(y, bias)
    return y
