"""Processors against repetition, of what was drawn or of a source text.

A source is ids [B, S] (an encoder's input) with `lengths` [B]; by default the past is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen.decoding.past import Needs, Past, counts, real
from jaxgen.decoding.record import record
from jaxgen.decoding.setting import checked, column, whole
from jaxgen.decoding.shape import BANNED, static

Over = Literal["all", "new"]


def _penalized(logits: Array, seen: Array, penalty: Array) -> Array:
    # Multiplied below zero and divided above, so that a penalty always makes less likely.
    changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, changed, logits)


@record
@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides the odds of every token that occurs in the past (Keskar et al. 2019)."""

    needs: ClassVar[Needs] = "tokens"
    name: ClassVar[str] = "repetition_penalty"
    penalty: Any
    over: Over = static("all")

    def __call__(self, logits: Float[Array, "B V"], past: Past) -> Float[Array, "B V"]:
        seen = counts(past.known()[0], real(past, self.over), logits.shape[-1]) > 0
        return _penalized(logits, seen, column(self.penalty))


@record
@dataclass(frozen=True)
class SourcePenalty:
    """Multiplies the odds of every token that occurs in the source, against hallucination."""

    penalty: Any
    source: Any
    lengths: Any

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        counted = jnp.arange(self.source.shape[1]) < self.lengths[:, None]
        seen = counts(jnp.asarray(self.source), counted, logits.shape[-1]) > 0
        return _penalized(logits, seen, 1 / column(self.penalty))


@record
@dataclass(frozen=True)
class CountPenalty:
    """Subtracts `presence` once and `frequency` per occurrence, as OpenAI's interface does."""

    needs: ClassVar[Needs] = "tokens"
    name: ClassVar[str] = "presence_penalty / frequency_penalty"
    presence: Any
    frequency: Any
    over: Over = static("new")

    def __call__(self, logits: Float[Array, "B V"], past: Past) -> Float[Array, "B V"]:
        seen = counts(past.known()[0], real(past, self.over), logits.shape[-1])
        seen = seen.astype(logits.dtype)
        once = column(self.presence) * (seen > 0).astype(logits.dtype)
        return logits - once - column(self.frequency) * seen


@record
@dataclass(frozen=True)
class NoRepeatNgram:
    """Bans every token that would repeat an n-gram of the past (Paulus et al. 2017)."""

    needs: ClassVar[Needs] = "tokens"
    name: ClassVar[str] = "no_repeat_ngram"
    size: Any

    def __call__(self, logits: Float[Array, "B V"], past: Past) -> Float[Array, "B V"]:
        tokens, _ = past.known()
        ends = _ends_ngram(tokens, real(past), past, self.size)
        return jnp.where(counts(tokens, ends, logits.shape[-1]) > 0, BANNED, logits)


@record
@dataclass(frozen=True)
class NoRepeatSource:
    """Bans every token that would repeat an n-gram of the source."""

    needs: ClassVar[Needs] = "tokens"
    name: ClassVar[str] = "no_repeat_source"
    size: Any
    source: Any
    lengths: Any

    def __call__(self, logits: Float[Array, "B V"], past: Past) -> Float[Array, "B V"]:
        source = jnp.asarray(self.source)
        counted = jnp.arange(source.shape[1]) < self.lengths[:, None]
        ends = _ends_ngram(source, counted, past, self.size)
        return jnp.where(counts(source, ends, logits.shape[-1]) > 0, BANNED, logits)


def _ends_ngram(
    tokens: Int[Array, "B S"], counted: Bool[Array, "B S"], past: Past, size: Any
) -> Bool[Array, "B S"]:
    """Slots of `tokens` that end an n-gram which begins as the past ends; none for size 0.

    The size is data, so one program serves all sizes: it steps back over one more token of the
    prefix as long as some request's n-gram is longer.
    """
    known, length = past.known()
    size = column(size)
    slots = jnp.arange(tokens.shape[1])[None]

    def one_more(back, alive):
        before = jnp.roll(tokens, back, axis=1)
        suffix = jnp.take_along_axis(known, jnp.maximum(length - back, 0)[:, None], axis=1)
        same = (before == suffix) & (slots >= back) & (length >= back)[:, None]
        return alive & (same | (back >= size))

    most = jnp.minimum(jnp.max(size), tokens.shape[1] + 1)
    return lax.fori_loop(1, most, one_more, counted & (size > 0))


def repetition_penalty(penalty: Any, *, over: Over = "all") -> RepetitionPenalty:
    """Return a repetition penalty (scalar or [B]; 1 is off); ConfigError unless above 0.

    over: "all" counts the prompt too, as transformers does; "new" only what was drawn.
    """
    return RepetitionPenalty(_positive("repetition_penalty", penalty), over)


def source_penalty(penalty: Any, source: Any, lengths: Any) -> SourcePenalty:
    """Return transformers' encoder repetition penalty: above 1 favours the source's tokens."""
    return SourcePenalty(_positive("source_penalty", penalty), source, lengths)


def presence_penalty(amount: Any, *, over: Over = "new") -> CountPenalty:
    """Return a processor that subtracts `amount` (scalar or [B]) from every token drawn before."""
    return CountPenalty(_finite("presence_penalty", amount), 0.0, over)


def frequency_penalty(amount: Any, *, over: Over = "new") -> CountPenalty:
    """Return a processor that subtracts `amount` (scalar or [B]) for each earlier draw."""
    return CountPenalty(0.0, _finite("frequency_penalty", amount), over)


def no_repeat_ngram(size: Any) -> NoRepeatNgram:
    """Return a processor that lets no n-gram of `size` (int or [B]; 0 is off) occur twice."""
    return NoRepeatNgram(whole("no_repeat_ngram", size, 0))


def no_repeat_source(size: Any, source: Any, lengths: Any) -> NoRepeatSource:
    """Return transformers' encoder no-repeat-n-gram: no n-gram of the source is copied."""
    return NoRepeatSource(whole("no_repeat_source", size, 0), source, lengths)


def _positive(name: str, value: Any) -> Any:
    rule = "a finite number greater than 0; 1 is off"
    return checked(name, value, lambda x: (x > 0) & (x < jnp.inf), rule)


def _finite(name: str, value: Any) -> Any:
    return checked(name, value, lambda x: abs(x) < jnp.inf, "a finite number; 0 is off")
