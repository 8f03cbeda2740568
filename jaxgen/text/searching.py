"""The strategies that make a whole text in one program: beams, contrastive search, speculation."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.config import ModelConfig
from jaxgen.decoding import past as pasts
from jaxgen.decoding.beam import Found, beam_search
from jaxgen.decoding.chain import Chain
from jaxgen.decoding.contrastive import contrastive_search
from jaxgen.decoding.search import Search
from jaxgen.decoding.speculate import Draft, Speculated, draft_model, lookup, speculate
from jaxgen.decoding.stop import StopStrings
from jaxgen.decoding.words import Words
from jaxgen.models import api
from jaxgen.text import steps
from jaxgen.text.batches import Rows
from jaxgen.text.beams import room, split
from jaxgen.text.drawing import Style, begin, memory_of, step_of
from jaxgen.text.generate import new_cache, prefill


class Scored(NamedTuple):
    """The model's log-probability of each token [B, T - 1] but the first, and alternatives."""

    logprobs: Float[Array, "B S"]
    top_ids: Int[Array, "B S K"]
    top_logprobs: Float[Array, "B S K"]


@partial(jax.jit, static_argnames=("config", "style", "length", "returned"))
def searched(
    params: api.Params,
    config: ModelConfig,
    style: Style,
    rows: Rows,
    search: Search,
    sample: Chain,
    words: Words | None,
    strings: StopStrings | None,
    *,
    length: int,
    returned: int,
) -> Found:
    """Return the best texts of each row by beam search, of up to its limit, at most `length`."""
    capacity = rows.prompt.shape[1] + room(search, length)
    first, cache = begin(params, config, style, rows, capacity)
    step = step_of(params, config, style, rows)
    return beam_search(
        *(step, split(cache, search), first, rows.keys, sample, length, search),
        returned=returned,
        words=words,
        stop=rows.stops,
        strings=strings,
        limit=rows.limits,
        prompt=rows.prompt,
        lengths=rows.widths,
    )


@partial(jax.jit, static_argnames=("config", "style", "length", "count"))
def contrasted(
    params: api.Params,
    config: ModelConfig,
    style: Style,
    rows: Rows,
    penalty: Float[Array, "B"] | np.ndarray,
    sample: Chain,
    strings: StopStrings | None,
    *,
    length: int,
    count: int,
) -> Int[Array, "B length"]:
    """Return each row's text by contrastive search over `count` candidates a token."""
    widths = jnp.asarray(rows.widths)
    memory = memory_of(params, config, rows.source, rows.segments)
    cache = new_cache(params, config, len(widths), rows.prompt.shape[1] + length + 1, memory)
    read = api.hidden(params, config, rows.prompt, cache=cache, memory=memory)
    assert read.cache is not None
    first = jnp.take_along_axis(jnp.asarray(rows.prompt), widths[:, None] - 1, axis=1)[:, 0]
    return contrastive_search(
        steps.seen(params, config, style.known),
        read.cache.rewind(widths - 1),
        first,
        sample,
        length,
        count=count,
        penalty=penalty,
        seen=read.state,
        seen_lengths=widths - 1,
        stop=rows.stops,
        strings=strings,
        limit=rows.limits,
        prompt=rows.prompt,
        lengths=rows.widths,
    )


@partial(jax.jit, static_argnames=("config", "style", "length", "count", "drafting"))
def speculated(
    params: api.Params,
    config: ModelConfig,
    style: Style,
    rows: Rows,
    sample: Chain,
    draft: api.Params | None,
    *,
    length: int,
    count: int,
    drafting: ModelConfig | None,
) -> Speculated:
    """Return each row's text, guessed `count` tokens at a time by a draft, or by lookup."""
    capacity = rows.prompt.shape[1] + length + count + 1
    first, cache = begin(params, config, style, rows, capacity)
    return speculate(
        steps.reading(params, config, style.known),
        cache,
        first,
        rows.keys,
        sample,
        length,
        _draft(draft, drafting, style, rows, sample, count, capacity),
        prompt=jnp.asarray(rows.prompt),
        lengths=rows.widths,
        stop=rows.stops,
        limit=rows.limits,
    )


def _draft(
    params: Any, config: ModelConfig | None, style: Style, rows: Rows, sample, count, capacity
) -> Draft:
    if config is None:
        return lookup(count)
    memory = memory_of(params, config, rows.source, rows.segments)
    widths = jnp.asarray(rows.widths)
    _, cache = prefill(params, config, rows.prompt, widths, capacity, memory=memory)
    # A draft may read nothing but logits: what looks back is left to the target.
    shaping = tuple(part for part in sample.processors if pasts.needs(part) == "nothing")
    return draft_model(steps.plain(params, config, style.known), cache, Chain(shaping), count)


@partial(jax.jit, static_argnames=("config", "style", "top"))
def scored(
    params: api.Params,
    config: ModelConfig,
    style: Style,
    tokens: Int[Array, "B T"] | np.ndarray,
    source: Any,
    segments: Any,
    *,
    top: int,
) -> Scored:
    """Return how likely the model finds each token after those before it."""
    memory = memory_of(params, config, source, segments)
    logits = api.apply(params, config, tokens, memory=memory).logits
    assert logits is not None
    known = jnp.arange(config.V) < style.known
    logprobs = jax.nn.log_softmax(jnp.where(known, logits[:, :-1], -jnp.inf), axis=-1)
    chosen = jnp.take_along_axis(logprobs, jnp.asarray(tokens)[:, 1:, None], axis=2)[..., 0]
    best, ids = jax.lax.top_k(logprobs, top)
    return Scored(chosen, ids, best)
