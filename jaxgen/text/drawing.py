"""Drawing tokens in chunks: the compiled part of text that arrives while it is made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.decoding.chain import Chain
from jaxgen.decoding.detail import Decoded, decode_detailed
from jaxgen.decoding.loop import Chunk, decode_chunk
from jaxgen.decoding.past import NO_TOKEN
from jaxgen.decoding.stop import StopStrings
from jaxgen.models import api
from jaxgen.text import steps
from jaxgen.text.batches import Rows, bucket
from jaxgen.text.generate import prefill


class Style(NamedTuple):
    """What is compiled into a step: ids the tokenizer knows, DoLa's layers, guidance or none."""

    known: int
    layers: tuple[int, ...] = ()
    guided: bool = False


def step_of(params: api.Params, config: ModelConfig, style: Style, rows: Rows):
    """Return the step of a style; its cache is what `begin` makes."""
    if style.layers:
        return steps.contrasted(params, config, style.known, style.layers)
    step = steps.plain(params, config, style.known)
    return steps.away(step, jnp.asarray(rows.scale)) if style.guided else step


def memory_of(params: api.Params, config: ModelConfig, source: Any, segments: Any):
    """Return what the encoder makes of sources, or None without any."""
    if source is None:
        return None
    return api.encode(params, config, source, segments=segments)


def begin(
    params: api.Params, config: ModelConfig, style: Style, rows: Rows, capacity: int
) -> tuple[Any, Any]:
    """Return (first, cache) of a batch, its prompts read."""
    memory = memory_of(params, config, rows.source, rows.segments)
    first, cache = prefill(
        params, config, rows.prompt, jnp.asarray(rows.widths), capacity, memory=memory
    )
    if not style.guided:
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


def drawn(
    params: api.Params,
    config: ModelConfig,
    style: Style,
    rows: Rows,
    sample: Chain,
    chunk: int,
    *,
    strings: StopStrings | None = None,
    top: int | None = None,
) -> Iterator[Chunk | Decoded]:
    """Yield `chunk` new tokens of all rows at a time, until every row's limit is reached.

    A caller ends a row by lowering its `rows.limits` meanwhile; the chunk after the next obeys.
    top: alternatives of each token that are told besides its log-probability and the row's Reason;
    None tells none of them.
    """
    longest, width = int(rows.limits.max()), rows.prompt.shape[1]
    first, cache = _begin(params, config, style, rows, bucket(width + longest + chunk))
    history = None
    if sample.needs == "tokens":
        history = jnp.pad(rows.prompt, ((0, 0), (0, bucket(longest + chunk))))
    waiting: Chunk | Decoded | None = None
    for start in range(0, longest, chunk):
        at = (cache, first, rows._replace(limits=rows.limits.copy()), sample, strings)
        made, first, history = _more(
            params, config, style, chunk, top, *at, np.int32(start), history
        )
        cache, strings = made.cache, made.strings
        made = made._replace(cache=None)  # the next chunk takes its memory
        # The next tokens are made while the caller looks at these: the device never waits. Rows
        # that have ended in between cost it nothing.
        if waiting is not None:
            yield waiting
            if (rows.limits <= start).all():
                return
        waiting = made
    if waiting is not None:
        yield waiting


@partial(jax.jit, static_argnames=("config", "style", "capacity"))
def _begin(params, config, style, rows, capacity):
    return begin(params, config, style, rows, capacity)


@partial(
    jax.jit,
    static_argnames=("config", "style", "chunk", "top"),
    donate_argnames=("cache", "history"),
)
def _more(
    params, config, style, chunk, top, cache, first, rows, sample, strings, start, history
) -> tuple[Chunk | Decoded, Any, Any]:
    step = step_of(params, config, style, rows)
    given = {"stop": rows.stops, "strings": strings, "start": start, "limit": rows.limits}
    if history is not None:
        given |= {"prompt": history, "lengths": rows.widths + start}
    if top is None:
        made = decode_chunk(step, cache, first, rows.keys, sample, chunk, **given)
    else:
        made = decode_detailed(step, cache, first, rows.keys, sample, chunk, top=top, **given)
    if history is not None:
        places = jnp.asarray(rows.widths)[:, None] + start + jnp.arange(chunk)
        history = history.at[jnp.arange(history.shape[0])[:, None], places].set(made.tokens)
    return made, made.tokens[:, -1], history
