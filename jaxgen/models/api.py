"""A model as pure functions of (params, config, tokens): init, apply and their shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen import tree
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.nn.transformer import Hidden, Transformer
from jaxgen.ops import cache as caches
from jaxgen.ops.losses import unembed

Params = dict[str, Any]
Ids = Int[Array | np.ndarray, "B T"]


class Output(NamedTuple):
    """What `apply` returns; unused fields cost nothing under jit."""

    logits: Float[Array, "B T V"]
    hidden: Float[Array, "B T D"]
    cache: caches.Cache | None
    taps: dict[str, Array]


def init(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Return freshly initialised parameters: a plain nested dict, paths like "layers/attn/q"."""
    return _unboxed(_boxed(config, key))


def abstract(config: ModelConfig) -> Params:
    """Return the parameters as ShapeDtypeStructs, without memory, for a model of any size."""
    return _unboxed(jax.eval_shape(lambda: _boxed(config, jax.random.key(0))))


def axes(config: ModelConfig) -> Params:
    """Return each parameter's logical axes: a string, one letter of the legend per dimension."""
    boxes = jax.eval_shape(lambda: _boxed(config, jax.random.key(0)))
    return tree.map_paths(lambda path, box: "".join(box.names), boxes)


def empty_cache(config: ModelConfig, batch: int, capacity: int) -> caches.Cache:
    """Return an empty key/value cache of `capacity` slots for each of `batch` rows."""
    return caches.empty(config.layers, batch, capacity, config.K, config.H, config.compute_dtype)


def hidden(
    params: Params,
    config: ModelConfig,
    tokens: Ids,
    *,
    positions: Int[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    cache: caches.Cache | None = None,
    key: PRNGKeyArray | None = None,
) -> Hidden:
    """Return the last hidden states and the output table, for losses that chunk the logits."""
    return _forward(params, config, tokens, positions, segments, cache, key)[0]


def apply(
    params: Params,
    config: ModelConfig,
    tokens: Ids,
    *,
    positions: Int[Array, "B T"] | None = None,
    segments: Int[Array, "B T"] | None = None,
    cache: caches.Cache | None = None,
    memory: Float[Array, "B S D"] | None = None,
    taps: tuple[str, ...] = (),
    key: PRNGKeyArray | None = None,
) -> Output:
    """Return the model's Output for token ids [B, T].

    positions: absolute positions; the default counts from 0, or from the cache's length.
    segments: document numbers; tokens of different documents don't see each other.
    cache: keys and values of earlier tokens; the result's cache holds these T tokens as well.
    memory: an encoder's output, for models with cross-attention.
    taps: globs of activations to return, such as "layers/attn_out", "layers/out" or "hidden".
    key: turns dropout on.
    Ids and positions are trusted here: out of range ones read the nearest valid row.
    Raises ConfigError for an input that this config has no use for.
    """
    if memory is not None:
        raise ConfigError("memory= was given, but a decoder-only model has no cross-attention")
    out, seen = _forward(params, config, tokens, positions, segments, cache, key, taps=bool(taps))
    logits = unembed(out.state, out.table, cap=config.logit_cap, dtype=config.compute_dtype)
    return Output(logits, out.state, out.cache, _taps(seen, taps))


def _forward(
    params, config, tokens, positions, segments, cache, key, *, taps=False
) -> tuple[Hidden, dict[str, Any]]:
    positions = _positions(config, tokens, positions, segments, cache)
    model = Transformer(config, deterministic=key is None)
    out: Any = model.apply(
        {"params": params},
        jnp.asarray(tokens),
        positions,
        segments,
        cache,
        rngs={} if key is None else {"dropout": key},
        mutable=["taps"] if taps else False,
    )
    return (out[0], out[1]["taps"]) if taps else (out, {})


def _positions(config, tokens, positions, segments, cache):
    length = tokens.shape[1]
    limit = config.context if cache is None else cache.capacity
    if length > limit:
        where = "context" if cache is None else "the cache's capacity"
        raise ConfigError(f"{length} tokens do not fit {where} of {limit}")
    if cache is not None and segments is not None:
        raise ConfigError("segments= and cache= exclude each other: a cache row is one document")
    if positions is not None:
        return positions
    start = jnp.zeros(tokens.shape[0], jnp.int32) if cache is None else cache.length
    return start[:, None] + jnp.arange(length, dtype=jnp.int32)


def _boxed(config: ModelConfig, key: PRNGKeyArray):
    tokens = jnp.zeros((1, 2), jnp.int32)
    positions = jnp.zeros((1, 2), jnp.int32)
    model = Transformer(config, deterministic=True)
    return dict(model.init({"params": key}, tokens, positions, None, None)["params"])


def _unboxed(boxes) -> Params:
    return tree.map_paths(lambda path, box: box.value, boxes)


def _taps(seen, patterns: tuple[str, ...]) -> dict[str, Array]:
    flat = {path: value[0] for path, value in tree.flatten(seen).items()}
    chosen = {path: value for path, value in flat.items() if tree.match(path, patterns)}
    unknown = [p for p in patterns if not any(tree.match(path, (p,)) for path in flat)]
    if unknown:
        raise ConfigError(f"taps {unknown} match nothing; there are {', '.join(sorted(flat))}")
    return chosen
