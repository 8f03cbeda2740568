"""A decoder goes on from rows of ids, as its folder wants it: its rules, its draw, its ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int

from jaxgen.decoding.loop import NO_STOP, NOT_FINITE, request_keys
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.ops import keys
from jaxgen.text import batches, drawing, follow
from jaxgen.text.tasks.model import Model, Progress, wants

CHUNK = 8  # tokens between looks at the result
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
    usage = model.generation_config
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
    prompt, sizes = batches.padded(rows)
    limits = np.asarray(rooms, np.int32)
    rules = follow.rules(model.generation_config, stop=model.stop, length=limits, prompt=sizes)
    draw = follow.draw(model.generation_config, temperature=temperature, top_k=top_k, top_p=top_p)
    sample = follow.sampler((*rules, *draw))
    stops = np.tile(np.asarray(model.stop or NO_STOP, np.int32), (len(rows), 1))
    batch = batches.Rows(prompt, sizes, stops, limits.copy(), requests)
    style, longest = drawing.Style(model.tokenizer.vocab_size), int(limits.max())
    chunks = drawing.drawn(model.ready, model.config, style, batch, sample, CHUNK)
    for start, chunk in zip(range(0, longest, CHUNK), chunks, strict=False):
        fresh = np.asarray(chunk.tokens)
        if (fresh == NOT_FINITE).any():
            raise NonFiniteError("the logits are not finite; take an earlier checkpoint")
        yield fresh[:, : longest - start]
        batch.limits[np.isin(fresh, stops).any(axis=1)] = 0
        if not batch.limits.any():
            return
