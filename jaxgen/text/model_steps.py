"""A Transformer as the steps that decoding wants: plain, seeing, reading, contrasted or guided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.config import ModelConfig
from jaxgen.decoding.contrast import layer_contrast
from jaxgen.decoding.contrastive import Seeing
from jaxgen.decoding.guide import guided
from jaxgen.decoding.loop import Step
from jaxgen.decoding.past import NO_TOKEN
from jaxgen.decoding.record import record
from jaxgen.decoding.speculate import Reader
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.ops.cache import by_row

WIDE = 40  # layers; a deeper model contrasts with 20 of them


def plain(params: api.Params, config: ModelConfig, known: int) -> Step:
    """Return the model as a step; ids from `known` on, which spell no text, are banned."""
    return _Plain(seen(params, config, known))


@record
@dataclass(frozen=True)
class _Plain:
    step: Seeing

    def __call__(self, tokens: Int[Array, "R"], cache: Any) -> tuple[Array, Any]:
        logits, _, cache = self.step(tokens, cache)
        return logits, cache


def seen(params: api.Params, config: ModelConfig, known: int) -> Seeing:
    """Return the step that gives its last hidden states, too, for contrastive search."""
    return _Seen(params, config, known)


@record
@dataclass(frozen=True)
class _Model:
    params: api.Params
    config: ModelConfig = field(metadata={"static": True})
    known: int = field(metadata={"static": True})


@record
@dataclass(frozen=True)
class _Seen(_Model):
    def __call__(self, tokens: Int[Array, "R"], cache: Any) -> tuple[Array, Array, Any]:
        out = api.apply(self.params, self.config, by_row(cache, tokens), cache=cache)
        assert out.logits is not None
        logits, hidden = (_each(x, tokens) for x in (out.logits, out.hidden))
        return _known(logits, self.known), hidden, out.cache


def reading(params: api.Params, config: ModelConfig, known: int) -> Reader:
    """Return the model as a reader of several tokens at once, for speculation."""
    return _Reading(params, config, known)


@record
@dataclass(frozen=True)
class _Reading(_Model):
    def __call__(self, tokens: Int[Array, "B T"], cache: Any) -> tuple[Array, Any]:
        out = api.apply(self.params, self.config, tokens, cache=cache)
        assert out.logits is not None
        return _known(out.logits, self.known), out.cache


def contrasted(
    params: api.Params, config: ModelConfig, known: int, layers: tuple[int, ...]
) -> Step:
    """Return DoLa's step, whose early layers are `layers` (see `dola_layers`)."""
    return layer_contrast(_Layered(params, config, known, layers))


@record
@dataclass(frozen=True)
class _Layered(_Model):
    layers: tuple[int, ...] = field(metadata={"static": True})

    def __call__(self, tokens: Int[Array, "R"], cache: Any) -> tuple[Array, Array, Any]:
        rows, layers = by_row(cache, tokens), self.layers
        out, early = api.early_logits(self.params, self.config, rows, layers, cache=cache)
        assert out.logits is not None
        early = _known(early.reshape(len(layers), tokens.shape[0], -1), self.known)
        return _known(_each(out.logits, tokens), self.known), early, out.cache


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
    return x.reshape(tokens.shape[0], *x.shape[2:])


def _known(logits: Float[Array, "*B V"], known: int) -> Float[Array, "*B V"]:
    size = logits.shape[-1]
    return logits if known >= size else jnp.where(jnp.arange(size) < known, logits, -jnp.inf)
