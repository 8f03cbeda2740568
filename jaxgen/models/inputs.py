"""Checks of a model's arguments where their values are concrete, and the inputs of a tower."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import arrays
from jaxgen.arguments import Call, at_least, between, token_ids
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.export import are_known, surely
from jaxgen.mesh.place import manual
from jaxgen.nn.transformer import Inputs, Part
from jaxgen.ops import cache as caches
from jaxgen.ops.adapted import num_virtual
from jaxgen.ops.contract import lookup


def readable(path: str, positions: Any, call: Call) -> None:
    """Raise ConfigError for concrete positions beyond the model's table."""
    config = call.given["config"]
    learned = config.has_position_table and call.given.get("cache") is None
    last = np.iinfo(np.int32).max
    if learned:
        last = config.context - 1 - num_virtual(call.given["params"])
    between(0, last, real="segments")(path, positions, call)


def of_table(path: str, types: Any, call: Call) -> None:
    """Raise ConfigError for token types that the model's table lacks."""
    count = call.given["config"].embed.types
    if count:  # a model without a table refuses them all, in a line of its own
        between(0, count - 1)(path, types, call)


def documents(path: str, segments: Any, call: Call) -> None:
    """Raise ConfigError for concrete numbers of documents below 0, or several behind one prompt."""
    at_least(0)(path, segments, call)
    numbers = arrays.concrete(segments) if "prompt" in call.given["params"] else None
    if numbers is not None and numbers.max() > 1:
        raise ConfigError(
            f"{path} reach {numbers.max()}, but behind an encoder's virtual tokens a row is one "
            f"document; give each a row of its own"
        )


def first_in_segments(path: str, prefix: Any, call: Call) -> None:
    """Raise ConfigError unless 1s come first in every segment of a concrete prefix."""
    if call.given["config"].prompt != "both":  # which is refused in a line of its own
        return
    between(0, 1)(path, prefix, call)
    marks, segments = arrays.concrete(prefix), call.given.get("segments")
    numbers = None if segments is None else arrays.concrete(segments)
    if marks is None:
        return
    late = (marks[:, 1:] == 1) & (marks[:, :-1] == 0)
    if segments is not None:
        if numbers is None or numbers.shape != marks.shape:
            return
        late &= np.diff(numbers, axis=1) == 0
    if late.any():
        row, column = map(int, np.argwhere(late)[0])
        raise ConfigError(
            f"{path}[{row}, {column + 1}]=1 comes after a 0: tokens in between would see what they "
            f"are to predict; let the 1s of a segment be its first tokens"
        )


def in_places(path: str, media: Any, call: Call) -> None:
    """Raise ConfigError unless the rows of known tokens have places for all images of a decoder."""
    vision, tokens = call.given["config"].vision, call.given.get("tokens", call.given.get("prompt"))
    ids = None if vision is None or tokens is None else arrays.concrete(tokens)
    if vision is None or ids is None or media.ndim < 2:
        return
    places, most = (ids == vision.token).sum(axis=1), media.shape[1] * vision.vectors
    if places.max(initial=0) != most or (places % vision.vectors).any():
        raise ConfigError(
            f"{path} holds {media.shape[1]} images a row, of {vision.vectors} vectors each, but "
            f"the rows have {places.tolist()} places of vision.token={vision.token}"
        )


# What the arguments of a model may hold, where their numbers are known.
INPUTS = {
    "tokens": token_ids(real="segments"),
    "positions": readable,
    "segments": documents,
    "types": of_table,
    "prefix": first_in_segments,
    "media": in_places,
}


def read_inputs(
    config,
    tokens,
    positions,
    segments,
    types,
    cache,
    memory,
    prefix=None,
    order=None,
    inputs_embeds=None,
    media=None,
) -> Inputs:
    """Return what a tower reads of the arguments of `api.apply`.

    Raises ConfigError for an input that this config has no use for, or that does not fit.
    """
    _check_parts(config, types, cache, memory)
    if config.stem is not None and config.topology == "encoder":
        tokens = _check_media(config, tokens, inputs_embeds, media, segments)
    else:
        if media is not None:
            _check_images(config, tokens, inputs_embeds, media)
        tokens = _check_embeds(config, tokens, inputs_embeds)
    if cache is not None and not manual():
        _check_cache(config, cache, tokens.shape[0])
    if prefix is not None and config.prompt != "both":
        raise ConfigError(f"prefix= was given, but prompt={config.prompt}: nothing is seen ahead")
    order = order or ("running" if positions is None else "free")
    positions = _positions(config, tokens, positions, segments, cache)
    # Of one signed type: differences of unsigned positions would wrap around.
    tokens, positions = (jnp.asarray(x, jnp.int32) for x in (tokens, positions))
    marks = (None if x is None else jnp.asarray(x, jnp.int32) for x in (segments, types, prefix))
    segments, types, prefix = marks
    embeds = None if inputs_embeds is None else jnp.asarray(inputs_embeds)
    media = None if media is None else jnp.asarray(media, config.compute_dtype)
    own = (tokens, positions, segments, types, cache, memory, prefix, order, embeds)
    return Inputs(*own, media=media)


def after_virtual_tokens(params: Any, config: ModelConfig, inputs: Inputs, part: Part) -> Inputs:
    """Return the inputs of a tower behind the virtual tokens of an adapter, if there are any.

    Those of which layers have keys move the positions; an encoder reads its own as tokens. Raises
    ConfigError where a table has no position for the last token.
    """
    prompt = params.get("prompt") if part == "encode" or config.topology == "encoder" else None
    keys = part != "encode"  # those of layers are the decoder's, where there are two towers
    count = prompt.vectors.shape[0] if prompt is not None else num_virtual(params) if keys else 0
    if not count:
        return inputs
    length = inputs.tokens.shape[1] if inputs.cache is None else inputs.cache.capacity
    most = config.context - count
    if config.has_position_table and surely(lambda: length > most):
        raise ConfigError(
            f"{length} tokens behind the adapter's {count} do not fit the {config.context} learned "
            f"positions; give {most} at most"
        )
    if prompt is None:
        return inputs._replace(positions=inputs.positions + count, num_virtual=count)
    embeds = inputs.embeds
    if embeds is None:
        tables = params["embed"] | params.get("encoder", {}).get("embed", {})
        embeds = lookup(tables["tokens"], inputs.tokens, dtype=config.compute_dtype)
    rows = jnp.broadcast_to(
        prompt.vectors.astype(embeds.dtype), (len(embeds), *prompt.vectors.shape)
    )

    def behind(marks: Any, value: int) -> Any:
        wide = ((0, 0), (count, 0))
        return None if marks is None else jnp.pad(marks, wide, constant_values=value)

    first = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (len(embeds), count))
    return inputs._replace(
        tokens=behind(inputs.tokens, 0),
        positions=jnp.concatenate([first, inputs.positions + count], axis=1),
        segments=behind(inputs.segments, 1),
        types=behind(inputs.types, 0),
        embeds=jnp.concatenate([rows, embeds], axis=1),
    )


def _check_embeds(config: ModelConfig, tokens: Any, inputs_embeds: Any) -> Any:
    """Return the tokens, or zeros of the embeddings' shape; ConfigError unless one is given."""
    if (tokens is None) == (inputs_embeds is None):
        raise ConfigError("give tokens [B, T], or inputs_embeds [B, T, D] in their place")
    if inputs_embeds is None:
        return tokens
    if config.per_layer is not None:
        raise ConfigError(
            "inputs_embeds: the model has vectors of tokens in each layer as well (per_layer), "
            "which they don't hold; give tokens"
        )
    shape = inputs_embeds.shape
    if shape[-1] != (width := config.embed_width):
        raise ConfigError(f"inputs_embeds are {list(shape)}, but tokens have vectors of {width}")
    return np.zeros(shape[:2], np.int32)


def _check_media(config, tokens: Any, inputs_embeds: Any, media: Any, segments: Any) -> Any:
    """Return zeros of the shape of the vectors of media; ConfigError unless the stem reads it."""
    stem = config.stem
    if media is None or tokens is not None or inputs_embeds is not None:
        raise ConfigError(
            f"stem.kind={stem.kind}: the encoder reads no tokens; give media= of the shape "
            f"{['B', *stem.shape]} alone (`{stem.verb}` makes it of files)"
        )
    if tuple(media.shape[1:]) != stem.shape:
        raise ConfigError(
            f"media is {list(media.shape)}, but stem.kind={stem.kind} reads {['B', *stem.shape]}"
        )
    if segments is not None:
        raise ConfigError(f"segments= has no effect with stem.kind={stem.kind}: nothing is padding")
    return np.zeros((media.shape[0], stem.vectors), np.int32)


def _check_images(config: ModelConfig, tokens: Any, inputs_embeds: Any, media: Any) -> None:
    """Raise ConfigError unless images fit a decoder and, where they are known, their places."""
    vision = config.vision
    if vision is None or tokens is None or inputs_embeds is not None:
        here = "vision=None" if vision is None else "the tokens with their places are missing"
        raise ConfigError(f"media= was given, but topology={config.topology} with {here}")
    shape = tuple(media.shape)
    if len(shape) != 5 or shape[2:] != vision.stem.shape or not shape[1]:
        raise ConfigError(
            f"media is {list(shape)}, but images of a decoder are "
            f"{['B', 'M', *vision.stem.shape]}, M for each row"
        )


class CacheParts(NamedTuple):
    """How many layers each part of a cache is for, and (heads, key and value width) of its keys."""

    full: caches.Counts
    sliding: caches.Counts
    state: caches.Counts
    all: caches.Counts
    full_sizes: tuple[int, int, int]
    sliding_sizes: tuple[int, int, int]


def cache_parts(config: ModelConfig, *, ring: bool, unrolled: bool) -> CacheParts:
    """Return the parts of a model's cache.

    Layers with a window have a part of their own if it is a ring, or if their heads have other
    sizes than those of the others. Layers with the keys of another one have none.
    """
    period = len(config.pattern)
    kinds = [config.pattern[layer % period] for layer in range(config.layers)]
    step = period if unrolled else config.layers
    steps = [kinds[begin : begin + step] for begin in range(0, config.layers, step)]
    attends = [kind for kind in config.pattern if config.mixer(kind) == "attention"]
    sizes = {config.reach(kind) == "window": config.of_kind(kind).cached for kind in attends}
    apart = ring or len({*sizes.values()}) > 1

    def part(kind: str) -> str:
        if config.shares_keys(kind) or config.mixer(kind) == "delta":
            return "none" if config.shares_keys(kind) else "state"
        return "sliding" if apart and config.reach(kind) == "window" else "full"

    def layers(*parts: str) -> caches.Counts:
        counts = [sum(part(kind) in parts for kind in one) for one in steps]
        return counts if unrolled else sum(counts)

    return CacheParts(
        layers("full"),
        layers("sliding"),
        layers("state"),
        layers("full", "sliding", "state", "none"),
        sizes.get(False, sizes.get(True, config.cached)),
        sizes.get(True, sizes.get(False, config.cached)),
    )


def _check_cache(config: ModelConfig, cache: caches.Cache, rows: Any) -> None:
    """Raise ConfigError for a cache of another config, or of other rows."""
    buffers = [buffer for buffer in (cache.full, cache.sliding) if buffer is not None]
    keys = [leaf.shape for buffer in buffers for leaf in jax.tree.leaves(buffer.k)]
    state = None if cache.state is None else cache.state.matrix
    states = [leaf.shape for leaf in jax.tree.leaves(state)]
    names = [config.pattern[i % len(config.pattern)] for i in range(config.layers)]
    kinds = [config.mixer(name) for name in names if not config.shares_keys(name)]
    mine = (*keys, *states)[0][1]
    sizes = {
        "layers": (sum(shape[0] for shape in keys), kinds.count("attention")),
        "layers of the delta rule": (sum(shape[0] for shape in states), kinds.count("delta")),
        "rows": (mine, mine if cache.branches is not None else rows),
    }
    if keys:
        own = {config.of_kind(name).cached for name in names if config.mixer(name) == "attention"}
        heads, widths = ({shape[i] for shape in keys} for i in (2, 4))
        sizes["key/value heads"] = (_one(heads), _one({cached[0] for cached in own}))
        sizes["numbers a head"] = (_one(widths), _one({cached[1] for cached in own}))
    for name, (have, want) in sizes.items():
        if surely(lambda have=have, want=want: have != want):
            raise ConfigError(
                f"the cache is for {have} {name}, but there are {want}; make it with "
                f"empty_cache(config, batch, capacity) or prefill of the same config and batch"
            )


def _one(sizes: set[int]) -> int | list[int]:
    """Return the one size, or those of several kinds of layers."""
    return sorted(sizes) if len(sizes) > 1 else next(iter(sizes))


def _check_parts(config: ModelConfig, types: Any, cache: Any, memory: Any) -> None:
    """Raise ConfigError for an input that a model of this config has no use for."""
    if memory is not None and config.topology != "encoder_decoder":
        raise ConfigError(
            f"memory= was given, but topology={config.topology} has no cross-attention"
        )
    if cache is not None and config.topology == "encoder":
        raise ConfigError("cache= was given, but topology=encoder sees both sides and has none")
    if types is not None and not config.embed.types:
        raise ConfigError("types= was given, but embed.types=0: the model has no table of them")


def _positions(config, tokens, positions, segments, cache):
    length = tokens.shape[1]
    capacity = None if cache is None else cache.capacity
    limit = config.longest if capacity is None else capacity
    fits = surely(lambda: length <= limit)
    if not fits and capacity is None and config.has_position_table and not are_known(length):
        raise ConfigError(
            f"{length} tokens may not fit the {limit} learned positions of context={limit}; say "
            f"that they do: jax.export.symbolic_shape(..., constraints=['{length} <= {limit}'])"
        )
    if surely(lambda: length > limit):
        where = "context" if capacity is None else "the cache's capacity"
        raise ConfigError(f"{length} tokens do not fit {where} of {limit}")
    if cache is not None and segments is not None:
        raise ConfigError("segments= and cache= exclude each other: a cache row is one document")
    if positions is not None:
        return positions
    if cache is not None:
        return caches.upcoming(cache, length)
    return jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), tokens.shape)
