"""A model as pure functions of (params, config, tokens): init, apply and their shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from jaxgen import arguments, tree
from jaxgen.arguments import at_least, size
from jaxgen.config import ModelConfig
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.export import Size, serializable
from jaxgen.models import layout as layouts
from jaxgen.models.inputs import INPUTS, after_virtual_tokens, cache_parts, read_inputs
from jaxgen.models.parameters import Params as Params
from jaxgen.models.parameters import abstract as abstract
from jaxgen.models.parameters import active as active
from jaxgen.models.parameters import axes as axes
from jaxgen.models.parameters import fits
from jaxgen.models.parameters import fits_draft as fits_draft
from jaxgen.models.parameters import init as init
from jaxgen.nn.stack import layer_taps
from jaxgen.nn.transformer import Hidden, Inputs, Part, Transformer
from jaxgen.ops import cache as caches
from jaxgen.ops.experts import RouterStats
from jaxgen.ops.losses import unembed
from jaxgen.ops.masks import Order
from jaxgen.ops.memory import Memory

Ids = Integer[Array | np.ndarray, "B T"]
Embeds = Float[Array | np.ndarray, "B T D"]
Media = Float[Array | np.ndarray, "B *media"]


@serializable
class Output(NamedTuple):
    """What `apply` returns; unused fields cost nothing under jit.

    logits: [B, T, V] of tokens, [B, C] of classes, [B, T, 2] of spans (begin, end), or None
    without a head. pooled: [B, D] of head=pooled.
    """

    logits: Float[Array, "..."] | None
    hidden: Float[Array, "B T D"]
    cache: caches.Cache | None
    taps: dict[str, Array]
    pooled: Float[Array, "B D"] | None = None


_INPUTS = {"params": fits} | INPUTS


@arguments.checked(batch=size(1), capacity=size(1), memory=size(1), slack=at_least(0))
@layouts.of_cache
def empty_cache(
    config: ModelConfig,
    batch: Size,
    capacity: Size,
    *,
    memory: Size | None = None,
    layout: caches.Layout = "contiguous",
    store: caches.Store = "plain",
    slack: int = 0,
    unrolled: bool = False,
) -> caches.Cache:
    """Return an empty key/value cache.

    Args:
        config: of the model; not an encoder.
        batch: rows, at least 1.
        capacity: tokens a row can hold, at least 1.
        memory: tokens of the encoder's output, which an encoder-decoder must know.
        layout: "ring" gives local layers as many slots as their window, whatever the capacity.
        store: "int8" keeps a byte a number (one scale for each token and head).
        slack: ring: further slots, so that the last slack + 1 tokens can be taken back.
        unrolled: for parameters whose layers are unrolled, as `model_step` has them, and no others.

    Returns:
        A Cache, a pytree. Raises ConfigError where `memory` is missing, or an argument has no use.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> jaxgen.empty_cache(config, batch=3, capacity=8).capacity
    8
    """
    if (memory is not None) != (config.topology == "encoder_decoder"):
        raise ConfigError(
            f"memory={memory} with topology={config.topology}: the cache of an encoder_decoder, "
            f"and of no other, holds keys of a memory"
        )
    if config.topology == "encoder":
        raise ConfigError("topology=encoder sees both sides, so it has no cache")
    if layout == "ring" and config.window is None:
        raise ConfigError("layout=ring with window=None: only layers with a window can forget")
    if layout == "ring" and config.has_relative:
        raise ConfigError(
            f"layout=ring with positions={config.positions}: its bias reads slots in order"
        )
    if layout == "ring" and config.prompt == "both":
        raise ConfigError("layout=ring with prompt=both: a prompt seen from both sides is kept")
    if slack and layout != "ring":
        raise ConfigError(f"slack={slack} has no effect with layout={layout}")
    parts = cache_parts(config, ring=layout == "ring", unrolled=unrolled)

    def of(heads: int, width: int, value_width: int) -> caches.Sizes:
        return caches.Sizes(batch, heads, width, config.compute_dtype, value_width)

    is_ring = layout == "ring"
    return caches.empty(
        of(*parts.full_sizes),
        full=(parts.full, capacity),
        sliding=(parts.sliding, (config.window or 0) if is_ring else capacity),
        sliding_sizes=of(*parts.sliding_sizes),
        is_ring=is_ring,
        slack=slack,
        store=store,
        state=None if config.delta is None else (parts.state, config.delta),
        cross=None if memory is None else (parts.all, memory),
    )


@arguments.checked(**_INPUTS)
@compile_once
@layouts.by_tokens
def encode(
    params: Params,
    config: ModelConfig,
    tokens: Ids | None = None,
    *,
    inputs_embeds: Embeds | None = None,
    media: Media | None = None,
    positions: Ids | None = None,
    segments: Ids | None = None,
    types: Ids | None = None,
    taps: tuple[str, ...] = (),
    interventions: dict[str, Callable[..., Array]] | None = None,
    order: Order | None = None,
    key: PRNGKeyArray | None = None,
) -> Memory:
    """Return what an encoder makes of token ids, for `apply(memory=...)`.

    Args:
        params: of the model.
        config: of the model, an encoder or encoder-decoder; static under jit.
        tokens: ids [B, S] of any integer type, or nested lists.
        inputs_embeds: [B, S, D] instead of tokens, see `apply`.
        media: instead of tokens, of a config with a stem: log-mel frames [B, 2 S, M] or images
            [B, rows, columns, M], as `jaxgen.data.media` makes them.
        positions: [B, S]; the default counts from 0.
        segments: [B, S], 0 for padding, then document numbers; without them a row is one document.
        types: [B, S] rows of the table of token types; the default is 0.
        taps: globs of activations to return; "encoder/..." in an encoder-decoder.
        interventions: functions that change activations, see `apply`.
        order: see `hidden`.
        key: turns dropout on.

    Returns:
        A Memory: state [B, S, D], segments [B, S] and taps. Raises ConfigError for a decoder.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2,
    ...                             topology="encoder", head="none")
    >>> params = jaxgen.init(config, jax.random.key(0))
    >>> jaxgen.encode(params, config, [[1, 2, 3]]).state.shape
    (1, 3, 8)
    """
    if config.topology == "decoder":
        raise ConfigError("topology=decoder has no encoder; call apply")
    given = {"order": order, "inputs_embeds": inputs_embeds, "media": media}
    reader = config.encoder() if config.topology == "encoder_decoder" else config
    inputs = read_inputs(reader, tokens, positions, segments, types, None, None, **given)
    inputs = _intervened(params, config, inputs, interventions, "encode")
    out, seen = _forward(params, config, inputs, key, part="encode", taps=bool(taps))
    marked = jnp.ones_like(inputs.tokens) if inputs.segments is None else inputs.segments
    if "prompt" in params and config.topology == "encoder_decoder":  # whose decoder sees that too
        before = (out.state.shape[1] - marked.shape[1], 0)
        marked = jnp.pad(marked, ((0, 0), before), constant_values=1)
    return Memory(out.state, marked, _taps(seen, taps))


@arguments.checked(**_INPUTS)
@compile_once
@layouts.by_tokens
def hidden(
    params: Params,
    config: ModelConfig,
    tokens: Ids | None = None,
    *,
    inputs_embeds: Embeds | None = None,
    media: Media | None = None,
    positions: Ids | None = None,
    segments: Ids | None = None,
    types: Ids | None = None,
    cache: caches.Cache | None = None,
    memory: Memory | None = None,
    prefix: Ids | None = None,
    taps: tuple[str, ...] = (),
    order: Order | None = None,
    key: PRNGKeyArray | None = None,
) -> Hidden:
    """Return hidden states, features and output table, for losses that chunk the logits.

    With experts also the sums of which the router's losses are made (`ops.experts.RouterStats`),
    and the activations `taps`, as of `apply`.

    order: "running" promises that the given positions rise by one inside each segment, which lets
    kernels skip what causal masks hide; None trusts only positions that were left to us.
    """
    given = positions, segments, types, cache, memory, prefix, order, inputs_embeds, media
    inputs = read_inputs(config, tokens, *given)
    router = bool(config.experts.number)
    out, seen = _forward(params, config, inputs, key, taps=bool(taps), router=router)
    return out._replace(taps=_taps(seen, taps)) if taps else out


@arguments.checked(**_INPUTS)
@compile_once
@layouts.by_tokens
def apply(
    params: Params,
    config: ModelConfig,
    tokens: Ids | None = None,
    *,
    inputs_embeds: Embeds | None = None,
    media: Media | None = None,
    positions: Ids | None = None,
    segments: Ids | None = None,
    types: Ids | None = None,
    cache: caches.Cache | None = None,
    memory: Memory | None = None,
    prefix: Ids | None = None,
    taps: tuple[str, ...] = (),
    interventions: dict[str, Callable[..., Array]] | None = None,
    key: PRNGKeyArray | None = None,
) -> Output:
    """Return what a model makes of token ids.

    Args:
        params: of the model.
        config: of the model; static under jit.
        tokens: ids [B, T] of any integer type, or nested lists. Traced ids and positions are
            trusted: those out of range read the nearest valid row.
        inputs_embeds: [B, T, D] instead of tokens, in place of the rows of the token table: what
            the model adds to these and multiplies them with comes after it.
        media: sound or images instead of tokens, for an encoder with a stem, see `encode`. Of a
            decoder with vision the images of each row [B, M, rows, columns, colours] beside its
            tokens: their vectors stand in the places of vision.token, in order. A row with fewer
            images than M has them first; what is behind them is not read.
        positions: [B, T] absolute positions; the default counts from 0, or the cache's length.
        segments: [B, T] document numbers, 0 for padding; tokens of different ones don't see each
            other, and an encoder-decoder's see the part of the memory with their number.
        types: [B, T] rows of the table of token types; the default is 0.
        cache: keys and values of earlier tokens (`empty_cache`); that of the result holds these T
            tokens as well.
        memory: what `encode` made, for an encoder-decoder; a cache that has seen it needs it no
            more.
        prefix: [B, T], 1 for tokens that earlier ones see as well, for a decoder with prompt=both:
            the first tokens of a row or, of packed rows, of each segment; the rest is 0.
        taps: globs of activations to return as plain arrays, stacked over layers where there is an
            L: "embedded" and "hidden" [B, T, D], "layers/out" (the residual stream) and what is
            added to it, "layers/attn_out", "layers/feed_out", "layers/cross_out" [L, B, T, D];
            "layers/attn/probs" [L, B, N, T, S], "layers/attn/values" [L, B, S, K, H] and
            "layers/attn/heads" [L, B, T, N, H], which the matrix `o` reads, and "layers/cross/..."
            alike; "layers/feed/neurons" [L, B, T, F], which `down` reads. A pattern of p kinds of
            layers has "layers/0/..." to "layers/{p-1}/...". What is not asked for costs nothing.
        interventions: by the same globs, functions (activation, layer) -> activation that
            replace what a tap shows, and what is computed of it. layer: its number, traced; None
            of an activation of no layer. They are differentiable in what they close over; jit
            takes `jax.tree_util.Partial(function, array)` as an argument.
        key: turns dropout on.

    Returns:
        An Output: logits [B, T, V], hidden [B, T, D], cache and taps. Raises ConfigError for an
        input that this config has no use for.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> params = jaxgen.init(config, jax.random.key(0))
    >>> jaxgen.apply(params, config, [[1, 2, 3]]).logits.shape
    (1, 3, 16)
    """
    given = positions, segments, types, cache, memory, prefix, None, inputs_embeds, media
    inputs = _intervened(
        params, config, read_inputs(config, tokens, *given), interventions, "decode"
    )
    out, seen = _forward(params, config, inputs, key, taps=bool(taps))
    pooled = out.features[:, 0] if config.head == "pooled" else None
    return Output(_logits(config, out), out.state, out.cache, _taps(seen, taps), pooled)


def early_logits(
    params: Params,
    config: ModelConfig,
    tokens: Ids,
    layers: tuple[int, ...],
    *,
    cache: caches.Cache | None = None,
) -> tuple[Output, Float[Array, "N B T V"]]:
    """Return (what `apply` does, the logits that the output table makes of earlier layers).

    layers: how many layers a state has behind it; 0 is the embedding. As DoLa has it (Chuang et
    al. 2024), the states are not normalised.
    """
    if config.embed.width is not None or config.residual.streams > 1:
        name, value = "embed.width", config.embed.width
        if value is None:
            name, value = "residual.streams", config.residual.streams
        raise ConfigError(f"{name}={value}: earlier layers have no logits")
    inputs = read_inputs(config, tokens, None, None, None, cache, None)
    out, seen = _forward(params, config, inputs, None, taps=True)
    flat = _taps(seen, ("*",))

    def state(layer: int) -> Array:
        return layer_taps(flat, config, layer - 1)["out"] if layer else flat["embedded"]

    early = [_logits(config, out._replace(features=state(layer))) for layer in layers]
    assert config.head == "lm" and layers
    return Output(_logits(config, out), out.state, out.cache, {}), jnp.stack(early)  # pyright: ignore[reportArgumentType]


def read_out(
    params: Params, config: ModelConfig, states: Float[Array, "B T D"]
) -> Float[Array, "..."]:
    """Return the logits that the last norm and the head make of the states behind any layer.

    Of those behind the last layer (the tap "layers/out") they are the model's own.
    """
    if config.residual.streams > 1 or config.head in ("none", "pooled"):
        raise ConfigError(
            f"residual.streams={config.residual.streams} and head={config.head}: states have no "
            f"logits"
        )
    places = jnp.zeros(states.shape[:2], jnp.int32)
    inputs = Inputs(places, places, state=states)
    out: Any = Transformer(config, deterministic=True).apply({"params": params}, inputs)
    logits = _logits(config, out)
    assert logits is not None
    return logits


def _logits(config: ModelConfig, out: Hidden) -> Array | None:
    if config.head in ("none", "pooled"):
        return None
    cap = config.logit_cap if config.head in ("lm", "mlm") else None
    logits = unembed(out.features, out.table, cap=cap, dtype=config.compute_dtype)
    return logits[:, 0] if config.head == "classes" else logits


def _intervened(
    params: Params, config: ModelConfig, inputs: Inputs, interventions: Any, part: Part
) -> Inputs:
    """Return the inputs with interventions by the paths of activations that their globs match."""
    if not interventions:
        return inputs
    seen = jax.eval_shape(lambda: _forward(params, config, inputs, None, part=part, taps=True)[1])
    found = {}
    for path in _matched(tree.flatten(seen), tuple(interventions), "interventions"):
        glob, *more = (glob for glob in interventions if tree.match(path, (glob,)))
        if more:  # a dict that goes through jit has no order
            raise ConfigError(f"interventions {[glob, *more]} both match {path}; give one function")
        found[path] = Partial(interventions[glob])
    return inputs._replace(interventions=found)


def _forward(
    params: Params,
    config: ModelConfig,
    inputs: Inputs,
    key: PRNGKeyArray | None,
    *,
    part: Part = "decode",
    taps: bool = False,
    router: bool = False,
) -> tuple[Hidden, dict[str, Any]]:
    reads = part == "decode" and config.topology == "encoder_decoder"
    if reads and inputs.memory is None and inputs.cache is None:
        raise ConfigError("topology=encoder_decoder reads a memory; pass memory=encode(...)")
    model = Transformer(config, deterministic=key is None, part=part)
    length = inputs.tokens.shape[1]
    inputs = after_virtual_tokens(params, config, inputs, part)
    out: Any = model.apply(
        {"params": params},
        inputs,
        rngs={} if key is None else {"dropout": key},
        mutable=[*["taps"] * taps, *["router"] * router],
    )
    hidden, seen = out
    if router:
        hidden = hidden._replace(router=_stacked(seen["router"]))
    if config.topology == "encoder" and inputs.tokens.shape[1] != length:
        hidden = hidden._replace(state=hidden.state[:, -length:])
        if config.head not in ("classes", "pooled"):  # which read the first of all
            hidden = hidden._replace(features=hidden.features[:, -length:])
    return hidden, seen.get("taps", {})


def _stacked(seen: Any) -> RouterStats:
    """Return the router's sums of all layers, those of one tree after those of another."""
    each = jax.tree.leaves(seen, is_leaf=lambda node: isinstance(node, RouterStats))
    each = [
        stats if stats.tokens.ndim else jax.tree.map(lambda x: x[None], stats) for stats in each
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *each)


def _taps(seen, patterns: tuple[str, ...]) -> dict[str, Array]:
    flat = {path: value[0] for path, value in tree.flatten(seen).items()}
    return _matched(flat, patterns, "taps")


def _matched(flat: dict[str, Any], patterns: tuple[str, ...], name: str) -> dict[str, Any]:
    """Return the activations that a pattern matches; ConfigError for one that matches none."""
    unknown = [p for p in patterns if not any(tree.match(path, (p,)) for path in flat)]
    if unknown:
        raise ConfigError(f"{name} {unknown} match nothing; there are {', '.join(sorted(flat))}")
    return {path: value for path, value in flat.items() if tree.match(path, patterns)}
