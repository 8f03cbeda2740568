"""Jitted programs that write texts: sampling in chunks, searches, speculation; and scores.

Parameters are as returned by `serving.ready`; config and StepKind are static.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.config import ModelConfig
from jaxgen.decoding.beam.constraints import Words
from jaxgen.decoding.beam.search import beam_search
from jaxgen.decoding.beam.settings import Search
from jaxgen.decoding.chain import Chain, initial_history
from jaxgen.decoding.combined_steps import classifier_free_guidance, self_debias
from jaxgen.decoding.detailed import Decoded, decode_detailed
from jaxgen.decoding.drafts import lookup
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.loop import Chunk, decode_chunk
from jaxgen.decoding.speculate import speculate
from jaxgen.decoding.stop import StopStrings
from jaxgen.models import api, serving
from jaxgen.text import model_steps as steps
from jaxgen.text import strategies
from jaxgen.text.batches import Rows, bucket, last_half
from jaxgen.text.generate import Ends, prefill
from jaxgen.text.strategies import draft_of, split, split_room, without_history


class StepKind(NamedTuple):
    """Static choices of a step: size of the tokenizer, DoLa's layers, what steers it."""

    num_ids: int
    layers: tuple[int, ...] = ()
    steered: Literal["guidance", "debias"] | None = None


class Scores(NamedTuple):
    """The model's log-probability of each token [B, T - 1] but the first, and alternatives."""

    logprobs: Float[Array, "B S"]
    top_ids: Int[Array, "B S K"]
    top_logprobs: Float[Array, "B S K"]


def step_of(params: api.Params, config: ModelConfig, kind: StepKind, rows: Rows):
    """Return the step of a kind; its cache is what `begin` makes."""
    if kind.layers:
        return steps.dola_step(params, config, kind.layers, kind.num_ids)
    step = steps.model_step(params, config, kind.num_ids)
    if kind.steered is None:
        return step
    combine = classifier_free_guidance if kind.steered == "guidance" else self_debias
    return steps.steered_step(step, combine, jnp.asarray(rows.scale))


def ends_of(rows: Rows, strings: StopStrings | None) -> Ends:
    """Return where the texts of a batch begin and end."""
    about = {"limit": rows.limits, "stop": rows.stops, "strings": strings}
    return Ends(prompt=jnp.asarray(rows.prompt), lengths=rows.widths, **about)


def memory_of(params: api.Params, config: ModelConfig, source: Any, segments: Any):
    """Return the encoder's memory of sources, or None without any."""
    if source is None:
        return None
    if config.stem is not None:
        return api.encode(params, config, media=source)
    return api.encode(params, config, source, segments=segments)


def begin(
    params: api.Params, config: ModelConfig, kind: StepKind, rows: Rows, capacity: int
) -> tuple[Any, Any]:
    """Return (first, cache) of a batch, its prompts read."""
    params = serving.unroll(params, config)
    memory = memory_of(params, config, rows.source, rows.segments)
    read = (params, config, rows.prompt, jnp.asarray(rows.widths), capacity)
    first, cache = prefill(*read, memory=memory, media=rows.media)
    if kind.steered is None:
        return first, cache
    assert rows.other is not None
    widths = jnp.asarray(rows.other_widths)
    if rows.source is not None:
        # An encoder-decoder is steered away from another source; its own text is the same.
        places = jnp.arange(rows.other.shape[1])
        memory = memory_of(params, config, rows.other, (places < widths[:, None]).astype(int))
        _, other = prefill(
            params, config, rows.prompt, jnp.asarray(rows.widths), capacity, memory=memory
        )
        return first, (cache, (other, jnp.full_like(first, NO_TOKEN)))
    least = jnp.maximum(widths, 1)
    capacity = capacity + rows.other.shape[1]
    last, other = prefill(params, config, rows.other, least, capacity)
    return first, (cache, (other, jnp.where(widths > 0, last, NO_TOKEN)))


def sample_chunks(
    params: api.Params,
    config: ModelConfig,
    kind: StepKind,
    rows: Rows,
    sample: Chain,
    strings: StopStrings | None,
    chunk: int,
    *,
    top: int | None = None,
) -> Iterator[Chunk | Decoded]:
    """Yield `chunk` new tokens of all rows at a time, until every row's limit is reached.

    A caller ends a row by lowering its `rows.limits` meanwhile; the chunk after the next obeys.
    With `rows.prefix`, a row whose context is full goes on from its last half, read as a prompt.
    top: alternatives to return for each token, with its log-probability and the row's Reason; None
    returns tokens alone.
    """
    longest, width = int(rows.limits.max()), rows.prompt.shape[1]
    room, context, half = width + longest, config.longest, last_half(config.longest)
    if rows.prefix is not None:
        room, chunk = min(room, max(width, context)), min(chunk, context - half)
    history, lengths = None, rows.widths
    if sample.requires == "tokens" or rows.prefix is not None:
        history = jnp.pad(rows.prompt, ((0, 0), (0, bucket(longest + chunk))))
    states = _states(sample, rows) if sample.keeps_states else None
    begun = (params, config, kind, rows, bucket(room + chunk))
    ahead = _compile_more(begun, chunk, top, (rows, sample, strings, np.int32(0), history, states))
    first, cache = _begin(*begun)
    if ahead is not None:
        ahead.result()
    waiting: Chunk | Decoded | None = None
    for start in range(0, longest, chunk):
        if rows.prefix is not None:
            left = np.minimum(rows.limits - start, chunk)
            full = (left > 0) & (lengths + left > context)
            if full.any():
                cache = _slide(params, config, rows, cache, history, np.int32(start), full)
                lengths = np.where(full, half, lengths)
            lengths = lengths + chunk
        at = (cache, first, rows._replace(limits=rows.limits.copy()), sample, strings)
        result, first, history = _more(
            params, config, kind, chunk, top, *at, np.int32(start), history, states
        )
        cache, strings = result.cache, result.strings
        states = result.states if sample.keeps_states else None
        result = result._replace(cache=None)  # the next chunk takes its memory
        # The next chunk runs while the caller reads this one, so the device never waits.
        if waiting is not None:
            yield waiting
            if (rows.limits <= start).all():
                return
        waiting = result
    if waiting is not None:
        yield waiting


@partial(jax.jit, static_argnames=("config", "kind", "capacity"))
def _begin(params, config, kind, rows, capacity):
    return begin(params, config, kind, rows, capacity)


def _compile_more(
    begun: tuple[Any, ...], chunk: int, top: int | None, rest: tuple[Any, ...]
) -> Future | None:
    """Start to compile `_more` for its first call, beside `_begin`; None where that was done.

    Call it where `_begin` has not run; the call of `_more` must wait for the future. JAX compiles
    a program by one thread, or reads it from disk, and without this would begin with the second
    once the first is there.
    """
    params, config, kind, rows, capacity = begun
    key = (config, kind, rows.prompt.shape, capacity, chunk, top, jax.tree.structure(rest))
    # Of arrays that have been placed, where the cache will be is known by the first program alone.
    placed = any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves(params))
    if placed or key in _COMPILED or jax.config.values["jax_disable_jit"]:
        return None
    _COMPILED.add(key)
    first, cache = _begin.eval_shape(*begun)
    lowered = _more.lower(params, config, kind, chunk, top, cache, first, *rest)
    threads = ThreadPoolExecutor(1, "jaxgen-compile")
    future = threads.submit(lowered.compile)
    threads.shutdown(wait=False)
    return future


_COMPILED: set[Any] = set()


@jax.jit
def _states(sample: Chain, rows: Rows) -> tuple[Any, ...]:
    history = initial_history(sample, len(rows.prompt), 0, rows.prompt, rows.widths)
    return () if history is None else history.states


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _slide(params, config, rows: Rows, cache, history, start, full) -> Any:
    """Return the cache in which the `full` rows [B] hold the last half of a context alone."""
    places = jnp.arange(last_half(config.longest))[None]
    opening = jnp.minimum(jnp.asarray(rows.prefix), places.size - 1)[:, None]
    ends = (rows.widths + start)[:, None]
    at = jnp.where(places < opening, places, ends - places.size + places)
    prompt = jnp.take_along_axis(history, jnp.maximum(at, 0), axis=1)
    lengths = jnp.full(len(prompt), places.size)
    params = serving.unroll(params, config)
    _, fresh = prefill(params, config, prompt, lengths, cache.capacity)
    return fresh.where(full, cache)


@partial(
    jax.jit,
    static_argnames=("config", "kind", "chunk", "top"),
    donate_argnames=("cache", "history"),
)
def _more(
    params, config, kind, chunk, top, cache, first, rows, sample, strings, start, history, states
) -> tuple[Chunk | Decoded, Any, Any]:
    step = step_of(params, config, kind, rows)
    options = {"stop": rows.stops, "strings": strings, "start": start, "limit": rows.limits}
    options |= {"states": states}
    if history is not None:
        options |= {"prompt": history, "lengths": rows.widths + start}
    if top is None:
        result = decode_chunk(step, cache, first, rows.keys, sample, chunk, **options)
    else:
        result = decode_detailed(step, cache, first, rows.keys, sample, chunk, top=top, **options)
    if history is not None:
        places = jnp.asarray(rows.widths)[:, None] + start + jnp.arange(chunk)
        history = history.at[jnp.arange(history.shape[0])[:, None], places].set(result.tokens)
    return result, result.tokens[:, -1], history


@partial(jax.jit, static_argnames=("config", "kind", "length", "num_return"))
def search_beams(
    params: api.Params,
    config: ModelConfig,
    kind: StepKind,
    rows: Rows,
    sample: Chain,
    strings: StopStrings | None,
    search: Search,
    words: Words | None,
    *,
    length: int,
    num_return: int,
) -> Decoded:
    """Return the best texts of each row by beam search, of up to its limit, at most `length`."""
    capacity = rows.prompt.shape[1] + split_room(search, length)
    first, cache = begin(params, config, kind, rows, capacity)
    step, cache = step_of(params, config, kind, rows), split(cache, search)
    loop = (step, cache, first, rows.keys, sample, length, search)
    return beam_search(*loop, num_return=num_return, words=words, **ends_of(rows, strings))


@partial(jax.jit, static_argnames=("config", "kind", "length", "count"))
def search_contrastive(
    params: api.Params,
    config: ModelConfig,
    kind: StepKind,
    rows: Rows,
    sample: Chain,
    strings: StopStrings | None,
    penalty: Float[Array, "B"] | np.ndarray,
    *,
    length: int,
    count: int,
) -> Decoded:
    """Return each row's text by contrastive search over `count` candidates a token."""
    params = serving.unroll(params, config)
    memory = memory_of(params, config, rows.source, rows.segments)
    ends, choice = ends_of(rows, strings), (sample, length, count, penalty)
    return strategies.search_contrastive(
        params, config, ends, *choice, known=kind.num_ids, memory=memory, media=rows.media
    )


@partial(jax.jit, static_argnames=("config", "kind", "length", "count", "draft_config"))
def speculate_tokens(
    params: api.Params,
    config: ModelConfig,
    kind: StepKind,
    rows: Rows,
    sample: Chain,
    draft_params: api.Params | None,
    *,
    length: int,
    count: int,
    draft_config: ModelConfig | None,
) -> Decoded:
    """Return each row's text, guessed `count` tokens at a time by a draft, or by lookup."""
    capacity = rows.prompt.shape[1] + length + count + 1
    params = serving.unroll(params, config)
    first, cache = begin(params, config, kind, rows, capacity)
    draft = lookup(count)
    if draft_params is not None and draft_config is not None:
        draft_params = serving.unroll(draft_params, draft_config)
        memory = memory_of(draft_params, draft_config, rows.source, rows.segments)
        read = (draft_params, draft_config, rows.prompt, jnp.asarray(rows.widths), capacity)
        own = without_history(sample)
        draft = draft_of(*read, own, count, known=kind.num_ids, memory=memory)
    read = steps.MultiTokenStep(params, config, kind.num_ids)
    loop = (read, cache, first, rows.keys, sample, length, draft)
    return speculate(*loop, **ends_of(rows, None))


@partial(jax.jit, static_argnames=("config", "kind", "top"))
def score_tokens(
    params: api.Params,
    config: ModelConfig,
    kind: StepKind,
    tokens: Int[Array, "B T"] | np.ndarray,
    source: Any,
    segments: Any,
    media: Any = None,
    *,
    top: int,
) -> Scores:
    """Return the log-probability of each token given those before it."""
    memory = memory_of(params, config, source, segments)
    logits = api.apply(params, config, tokens, memory=memory, media=media).logits
    assert logits is not None
    is_token = jnp.arange(config.V) < kind.num_ids
    logprobs = jax.nn.log_softmax(jnp.where(is_token, logits[:, :-1], -jnp.inf), axis=-1)
    chosen = jnp.take_along_axis(logprobs, jnp.asarray(tokens)[:, 1:, None], axis=2)[..., 0]
    best, ids = jax.lax.top_k(logprobs, top)
    return Scores(chosen, ids, best)
