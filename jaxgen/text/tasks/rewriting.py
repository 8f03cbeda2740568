"""Text from text with an encoder-decoder: translation, summaries, answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.decoding.beam import Found
from jaxgen.decoding.detail import Reason
from jaxgen.decoding.force import suppress
from jaxgen.decoding.search import Search
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.models import api
from jaxgen.text import follow
from jaxgen.text.beams import generate_beams
from jaxgen.text.tasks.model import Model, Overflow, Progress, by_length, rows_of


def rewrite(
    model: Model,
    texts: Sequence[str],
    *,
    length: int | None = None,
    search: Search | None = None,
    batch: int = 32,
    overflow: Overflow = "refuse",
    progress: Progress | None = None,
) -> list[str]:
    """Return the likeliest text that the model makes of each text, in their order.

    The first of each list of `rewrites`, whose arguments and errors these are.
    """
    kept = {"search": search, "batch": batch, "overflow": overflow, "progress": progress}
    return [found[0] for found in rewrites(model, texts, 1, length=length, **kept)]


def rewrites(
    model: Model,
    texts: Sequence[str],
    returned: int,
    *,
    length: int | None = None,
    search: Search | None = None,
    batch: int = 32,
    overflow: Overflow = "refuse",
    progress: Progress | None = None,
) -> list[list[str]]:
    """Return up to `returned` texts that the model makes of each text, the likeliest first.

    length: at most so many new tokens; None: as the folder says, else twice the longest source of
    a batch, and 16. search: how beams are kept; None: as the folder says, else 5 beams. What it
    forbids, forces and penalises is followed. Raises ConfigError for a model that is no
    encoder-decoder, more texts than beams, an empty text, or one too long; NonFiniteError.
    """
    if model.config.topology != "encoder_decoder" or model.start is None:
        raise ConfigError(
            f"topology={model.config.topology} with start={model.start}: rewriting needs an "
            f"encoder_decoder and the id that its decoder begins with"
        )
    rows, made = rows_of(model, texts, overflow), [[""]] * len(texts)
    search = follow.search(model.generation_config) if search is None else search
    stop = np.asarray(model.stop, np.int32) if model.stop else None
    for numbers, tokens, segments in by_length(rows, batch, model.config.context, progress):
        wanted = length or most(model, tokens.shape[1])
        lengths = segments.sum(axis=1).astype(np.int32)
        rules = follow.rules(
            model.generation_config,
            stop=model.stop,
            length=wanted,
            prompt=1,
            source=tokens,
            lengths=lengths,
        )
        # A table may have more rows than the tokenizer has ids: those spell no text.
        spare = range(model.tokenizer.vocab_size, model.config.V)
        sample = follow.sampler((*rules, *((suppress(list(spare)),) if spare else ())))
        found = _search(
            *(model.ready, model.config, tokens, segments, search, sample, stop),
            *(model.start, wanted, returned),
        )
        for place, number in enumerate(numbers):
            made[number] = _texts(model, found, place)
    return made


def most(model: Model, width: int) -> int:
    """Return how many new tokens the decoder may make from sources of this width."""
    usage, room = model.generation_config, model.config.context - 1
    told = usage.length or (usage.whole_length and usage.whole_length - 1)
    return min(told or 2 * width + 16, room)


@partial(jax.jit, static_argnames=("config", "start", "length", "returned"))
def _search(
    params, config, tokens, segments, search, sample, stop, start, length, returned
) -> Found:
    memory = api.encode(params, config, tokens, segments=segments)
    prompt = jnp.full((tokens.shape[0], 1), start, jnp.int32)
    return generate_beams(
        *(params, config, prompt, search),
        length=length,
        sample=sample,
        returned=returned,
        stop=stop,
        memory=memory,
    )


def _texts(model: Model, found: Found, place: int) -> list[str]:
    if int(found.reason[place, 0]) == Reason.NOT_FINITE:
        raise NonFiniteError("the logits are not finite; take an earlier checkpoint")
    kept = np.flatnonzero(np.isfinite(found.scores[place])).tolist() or [0]
    ends = zip(np.asarray(found.tokens[place])[kept], found.made[place, kept], strict=True)
    return [model.text(ids[: int(made)].tolist()) for ids, made in ends]
