"""A decoder goes on from rows of ids, as its folder wants it: its rules, its draw, its ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxgen.config import ModelConfig
from jaxgen.decoding.chain import Chain
from jaxgen.decoding.loop import NO_STOP, NOT_FINITE, decode, request_keys
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.ops import keys
from jaxgen.text import follow
from jaxgen.text.generate import model_step, prefill
from jaxgen.text.tasks.model import Model, Progress, wants

CHUNK = 8  # tokens between looks at the result
BUCKET = 32  # the smallest width; widths double, so few shapes are ever compiled
FRESH = 128  # new tokens where nobody says how many


def write(
    model: Model,
    rows: Sequence[Sequence[int]],
    *,
    length: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Return the text that follows each row of ids, up to a token that ends it.

    length: at most so many new tokens; None: as the folder says, else 128, if the context has
    room. temperature, top_k, top_p: in place of the folder's. Row i draws with
    fold_in(key(seed), i), so its text does not depend on its batch. Raises ConfigError for a row
    that leaves no room, or a model that gives no next token; NonFiniteError.
    """
    made: list[str] = []
    draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    everyone = request_keys(keys.from_seed(seed), max(len(rows), 1))
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        sizes = [room_for(model, row, length) for row in part]
        requests = everyone[begin : begin + len(part)]
        chunks = stream(model, part, sizes, requests, **draw)
        tokens = np.concatenate(list(chunks), axis=1)
        made += [model.text(row[:size]) for row, size in zip(tokens.tolist(), sizes, strict=True)]
        if progress:
            progress(begin + len(part), len(rows))
    return made


def room_for(model: Model, row: Sequence[int], length: int | None) -> int:
    """Return how many new tokens a row gets; ConfigError if the context has no room for them."""
    room = model.config.context - len(row)
    if room < 1 or not row or (length is not None and not 0 < length <= room):
        remedy = f", or ask for at most {room}" if room > 0 else ""
        raise ConfigError(
            f"{len(row)} tokens of prompt and {length or 'at least 1'} new ones do not fit "
            f"context={model.config.context}; shorten the prompt{remedy}"
        )
    usage = model.usage
    told = usage.length or (usage.whole_length and max(usage.whole_length - len(row), 1))
    return length or min(told or FRESH, room)


def stream(
    model: Model,
    rows: Sequence[Sequence[int]],
    rooms: Sequence[int],
    requests: jax.Array,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[Int[np.ndarray, "B N"]]:
    """Yield the next few tokens of all rows until `rooms` are made or every row has ended."""
    wants(model, "writing", topology=("decoder",), head=("lm",))
    sizes, length = np.asarray([len(row) for row in rows], np.int32), max(rooms)
    width = _bucket(int(sizes.max()))
    known = np.zeros((len(rows), _bucket(width + length + CHUNK)), np.int32)
    for place, row in enumerate(rows):
        known[place, : len(row)] = row
    limits = np.asarray(rooms, np.int32)
    rules = follow.rules(model.usage, stop=model.stop, length=limits, prompt=sizes)
    draw = follow.draw(model.usage, temperature=temperature, top_k=top_k, top_p=top_p)
    sample = follow.sampler((*rules, *draw))
    stop = np.asarray(model.stop, np.int32) if model.stop else NO_STOP
    token, cache = _begin(model.params, model.config, known[:, :width], sizes, known.shape[1])
    ended = np.zeros(len(rows), bool)
    for start in range(0, length, CHUNK):
        tokens, cache = _more(
            *(model.params, model.config, model.tokenizer.vocab_size, cache, token, requests),
            *(sample, stop, start, known, sizes + start),
        )
        token, fresh = tokens[:, -1], np.asarray(tokens)
        if (fresh == NOT_FINITE).any():
            raise NonFiniteError("the logits are not finite; take an earlier checkpoint")
        for place, size in enumerate(sizes):
            known[place, size + start : size + start + CHUNK] = fresh[place]
        yield fresh[:, : length - start]
        ended |= np.isin(fresh, stop).any(axis=1)
        if ended.all():
            return


def _bucket(size: int) -> int:
    bucket = BUCKET
    while bucket < size:
        bucket *= 2
    return bucket


@partial(jax.jit, static_argnames=("config", "capacity"))
def _begin(params, config: ModelConfig, prompt, sizes, capacity):
    return prefill(params, config, prompt, sizes, capacity)


@partial(jax.jit, static_argnames=("config", "known"), donate_argnames="cache")
def _more(params, config, known, cache, token, requests, sample: Chain, stop, start, prompt, sizes):
    whole = model_step(params, config)

    def step(tokens, cache):
        logits, cache = whole(tokens, cache)
        # A table may have more rows than the tokenizer has ids: those spell no text.
        return jnp.where(jnp.arange(config.V) < known, logits, -jnp.inf), cache

    return decode(
        *(step, cache, token, requests, sample, CHUNK),
        stop=stop,
        start=start,
        prompt=prompt,
        lengths=sizes,
    )
