"""A Transformer as the steps that decoding wants: plain, seeing, reading, contrasted or guided."""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.config import ModelConfig
from jaxgen.decoding.contrast import layer_contrast
from jaxgen.decoding.contrastive import Seeing
from jaxgen.decoding.guide import guided
from jaxgen.decoding.loop import Step
from jaxgen.decoding.past import NO_TOKEN
from jaxgen.decoding.speculate import Reader
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.ops.cache import by_row

WIDE = 40  # layers; a deeper model contrasts with 20 of them


def plain(params: api.Params, config: ModelConfig, known: int) -> Step:
    """Return the model as a step; ids from `known` on, which spell no text, are banned."""
    seeing = seen(params, config, known)

    def step(tokens, cache):
        logits, _, cache = seeing(tokens, cache)
        return logits, cache

    return step


def seen(params: api.Params, config: ModelConfig, known: int) -> Seeing:
    """Return the step that gives its last hidden states, too, for contrastive search."""

    def step(tokens, cache):
        out = api.apply(params, config, by_row(cache, tokens), cache=cache)
        assert out.logits is not None
        logits, hidden = (_each(x, tokens) for x in (out.logits, out.hidden))
        return _known(logits, known), hidden, out.cache

    return step


def reading(params: api.Params, config: ModelConfig, known: int) -> Reader:
    """Return the model as a reader of several tokens at once, for speculation."""

    def read(tokens, cache):
        out = api.apply(params, config, tokens, cache=cache)
        assert out.logits is not None
        return _known(out.logits, known), out.cache

    return read


def contrasted(
    params: api.Params, config: ModelConfig, known: int, layers: tuple[int, ...]
) -> Step:
    """Return DoLa's step, whose early layers are `layers` (see `dola_layers`)."""

    def step(tokens, cache):
        rows = by_row(cache, tokens)
        out, early = api.early_logits(params, config, rows, layers, cache=cache)
        assert out.logits is not None
        early = early.reshape(len(layers), len(tokens), -1)
        return _known(_each(out.logits, tokens), known), _known(early, known), out.cache

    return layer_contrast(step)


def dola_layers(config: ModelConfig, which: Literal["low", "high"]) -> tuple[int, ...]:
    """Return the layers that transformers contrasts with; ConfigError for an encoder-decoder."""
    if config.topology != "decoder":
        raise ConfigError(f"dola={which} needs a decoder, but topology={config.topology}")
    last = config.layers
    if which == "high":
        return tuple(range(last // 2 if last <= WIDE else last - 20, last, 2))
    # Where the output table is the embedding's, the embedding only says the token itself.
    first = 0 if config.output == "untied" or last < 2 else 2 if last > 2 else 1
    found = range(first, last // 2 if last <= WIDE else 20, 2)
    return tuple(found) or (first,)


def away(step: Step, scale: Float[Array, "B"]) -> Step:
    """Return the step of classifier-free guidance over (cache, (other cache, pending token)).

    pending: [B] what the other prompt has to be given first instead of the request's own last
    token; NO_TOKEN gives it that one.
    """

    def other(tokens: Int[Array, "B"], held: Any):
        cache, pending = held
        logits, cache = step(jnp.where(pending == NO_TOKEN, tokens, pending), cache)
        return logits, (cache, jnp.full_like(pending, NO_TOKEN))

    return guided(step, other, scale)


def _each(x: Float[Array, "B T *X"], tokens: Int[Array, "R"]) -> Float[Array, "R *X"]:
    """What a model makes of `by_row`, token by token again."""
    return x.reshape(len(tokens), *x.shape[2:])


def _known(logits: Float[Array, "*B V"], known: int) -> Float[Array, "*B V"]:
    size = logits.shape[-1]
    return logits if known >= size else jnp.where(jnp.arange(size) < known, logits, -jnp.inf)
