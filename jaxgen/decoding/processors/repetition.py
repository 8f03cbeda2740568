"""Processors against repetition, of what was drawn or of a source text.

A source is ids [B, S] (an encoder's input) with `lengths` [B]; by default it is the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen import arguments
from jaxgen.arguments import Range, above, at_least, between
from jaxgen.decoding.history import History, Requires, count_tokens, valid_mask
from jaxgen.decoding.per_request import Number, Whole, column
from jaxgen.decoding.processors.truncation import BANNED, static
from jaxgen.pytree import register_dataclass

Over = Literal["all", "new"]
Source = Int[Array | np.ndarray, "B S"]
Lengths = Int[Array | np.ndarray, "B"]
_PENALTY = above(0, note="1 is off")
_AMOUNT = Range(note="0 is off")
_SOURCE = at_least(0, real="lengths")
_LENGTHS = between(0, "S")


def _penalized(logits: Array, seen: Array, penalty: Array) -> Array:
    # Multiplied below zero and divided above, so that a penalty always makes less likely.
    changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, changed, logits)


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides the odds of every token that occurs in the history (Keskar et al. 2019)."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "repetition_penalty"
    penalty: Number
    over: Over = static("all")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        seen = (
            count_tokens(
                history.tokens_and_length()[0], valid_mask(history, self.over), logits.shape[-1]
            )
            > 0
        )
        return _penalized(logits, seen, column(self.penalty))


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class SourcePenalty:
    """Multiplies the odds of every token that occurs in the source, against hallucination."""

    penalty: Number
    source: Source
    lengths: Lengths

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        counted = jnp.arange(self.source.shape[1]) < self.lengths[:, None]
        seen = count_tokens(jnp.asarray(self.source), counted, logits.shape[-1]) > 0
        return _penalized(logits, seen, 1 / column(self.penalty))


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class CountPenalty:
    """Subtracts `presence` once and `frequency` per occurrence, as OpenAI's interface does."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "presence_penalty / frequency_penalty"
    presence: Number
    frequency: Number
    over: Over = static("new")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        seen = count_tokens(
            history.tokens_and_length()[0], valid_mask(history, self.over), logits.shape[-1]
        )
        seen = seen.astype(logits.dtype)
        once = column(self.presence) * (seen > 0).astype(logits.dtype)
        return logits - once - column(self.frequency) * seen


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class NoRepeatNgram:
    """Bans every token that would repeat an n-gram of the history (Paulus et al. 2017)."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "no_repeat_ngram"
    size: Whole

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        tokens, _ = history.tokens_and_length()
        ends = _ends_ngram(tokens, valid_mask(history), history, self.size)
        return jnp.where(count_tokens(tokens, ends, logits.shape[-1]) > 0, BANNED, logits)


@arguments.checked
@register_dataclass
@dataclass(frozen=True)
class NoRepeatSource:
    """Bans every token that would repeat an n-gram of the source."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "no_repeat_source"
    size: Whole
    source: Source
    lengths: Lengths

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        source = jnp.asarray(self.source)
        counted = jnp.arange(source.shape[1]) < self.lengths[:, None]
        ends = _ends_ngram(source, counted, history, self.size)
        return jnp.where(count_tokens(source, ends, logits.shape[-1]) > 0, BANNED, logits)


def _ends_ngram(
    tokens: Int[Array, "B S"], counted: Bool[Array, "B S"], history: History, size: Any
) -> Bool[Array, "B S"]:
    """Slots of `tokens` that end an n-gram that begins as the history ends; none for size 0.

    The size is data, so one program serves all sizes: it steps back over one more token of the
    prefix as long as some request's n-gram is longer.
    """
    known, length = history.tokens_and_length()
    size = column(size)
    slots = jnp.arange(tokens.shape[1])[None]

    def one_more(back, alive):
        before = jnp.roll(tokens, back, axis=1)
        suffix = jnp.take_along_axis(known, jnp.maximum(length - back, 0)[:, None], axis=1)
        same = (before == suffix) & (slots >= back) & (length >= back)[:, None]
        return alive & (same | (back >= size))

    most = jnp.minimum(jnp.max(size), tokens.shape[1] + 1)
    return lax.fori_loop(1, most, one_more, counted & (size > 0))


@arguments.checked(penalty=_PENALTY)
def repetition_penalty(penalty: Number, *, over: Over = "all") -> RepetitionPenalty:
    """Return a repetition penalty (scalar or [B]; 1 is off); ConfigError unless above 0.

    over: "all" counts the prompt too, as transformers does; "new" only what was drawn.
    """
    return RepetitionPenalty(penalty, over)


@arguments.checked(penalty=_PENALTY, source=_SOURCE, lengths=_LENGTHS)
def source_penalty(penalty: Number, source: Source, lengths: Lengths) -> SourcePenalty:
    """Return transformers' encoder repetition penalty: above 1 favours the source's tokens."""
    return SourcePenalty(penalty, source, lengths)


@arguments.checked(amount=_AMOUNT)
def presence_penalty(amount: Number, *, over: Over = "new") -> CountPenalty:
    """Return a processor that subtracts `amount` (scalar or [B]) from every token drawn before."""
    return CountPenalty(amount, 0.0, over)


@arguments.checked(amount=_AMOUNT)
def frequency_penalty(amount: Number, *, over: Over = "new") -> CountPenalty:
    """Return a processor that subtracts `amount` (scalar or [B]) for each earlier draw."""
    return CountPenalty(0.0, amount, over)


@arguments.checked(size=at_least(0))
def no_repeat_ngram(size: Whole) -> NoRepeatNgram:
    """Return a processor that lets no n-gram of `size` (int or [B]; 0 is off) occur twice."""
    return NoRepeatNgram(size)


@arguments.checked(size=at_least(0), source=_SOURCE, lengths=_LENGTHS)
def no_repeat_source(size: Whole, source: Source, lengths: Lengths) -> NoRepeatSource:
    """Return transformers' encoder no-repeat-n-gram: no n-gram of the source is copied."""
    return NoRepeatSource(size, source, lengths)
