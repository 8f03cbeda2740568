"""Text from text with an encoder-decoder: translation, summaries, answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.decoding.beam import Found
from jaxgen.decoding.detail import Reason
from jaxgen.decoding.search import Search, beams
from jaxgen.errors import ConfigError, NonFiniteError
from jaxgen.models import api
from jaxgen.text.beams import generate_beams
from jaxgen.text.tasks.model import Model, by_length

Progress = Callable[[int, int], None]


def rewrite(
    model: Model,
    texts: Sequence[str],
    *,
    length: int | None = None,
    search: Search | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """Return the likeliest text that the model makes of each text, in their order.

    length: at most so many new tokens; None: twice the longest source of a batch, and 16. search:
    how beams are kept; None: 5 beams. progress: called with (texts done, texts in all). Raises
    ConfigError for a model that is no encoder-decoder or an empty text, NonFiniteError.
    """
    if model.config.topology != "encoder_decoder" or model.start is None:
        raise ConfigError(
            f"topology={model.config.topology} with start={model.start}: rewriting needs an "
            f"encoder_decoder and the id that its decoder begins with"
        )
    if not all(texts):
        raise ConfigError(f"text {list(texts).index('')} is empty; remove it")
    rows, made = [model.ids(text) for text in texts], [""] * len(texts)
    search, eos, done = search or beams(5), model.tokenizer.special.eos, 0
    stop = None if eos is None else np.asarray([eos], np.int32)
    for numbers, tokens, segments in by_length(rows, batch, model.config.context):
        wanted = length or min(2 * tokens.shape[1] + 16, model.config.context - 1)
        found = _search(
            model.params, model.config, tokens, segments, search, stop, model.start, wanted
        )
        for place, number in enumerate(numbers):
            made[number] = _text(model, found, place)
        done += len(numbers)
        if progress:
            progress(done, len(texts))
    return made


@partial(jax.jit, static_argnames=("config", "start", "length"))
def _search(params, config, tokens, segments, search, stop, start, length) -> Found:
    memory = api.encode(params, config, tokens, segments=segments)
    prompt = jnp.full((tokens.shape[0], 1), start, jnp.int32)
    return generate_beams(params, config, prompt, search, length=length, stop=stop, memory=memory)


def _text(model: Model, found: Found, place: int) -> str:
    if int(found.reason[place, 0]) == Reason.NOT_FINITE:
        raise NonFiniteError("the logits are not finite; take an earlier checkpoint")
    ids = np.asarray(found.tokens[place, 0])[: int(found.made[place, 0])].tolist()
    known, eos = model.tokenizer.vocab_size, model.tokenizer.special.eos
    return model.tokenizer.decode([i for i in ids if i < known and i != eos])
