"""Processors against repetition, of what was drawn or of a source text.

A source is ids [B, S] (an encoder's input) with `lengths` [B]; by default it is the history.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen.arguments import Range, above, at_least, between
from jaxgen.decoding.history import History, Requires, count_tokens, valid_mask
from jaxgen.decoding.per_request import Number, Whole, column
from jaxgen.decoding.processors.base import BANNED, processor, static

Over = Literal["all", "new"]
Source = Int[Array | np.ndarray, "B S"]
Lengths = Int[Array | np.ndarray, "B"]
_PENALTY = above(0, note="1 is off")
_AMOUNT = Range(note="0 is off")
_SOURCE = at_least(0, real="lengths")
_LENGTHS = between(0, "S")


def _penalize(logits: Array, present: Array, penalty: Array) -> Array:
    # Multiplied below zero and divided above, so that a penalty always makes less likely.
    changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(present, changed, logits)


def _count(history: History, over: Over, vocab: int) -> Int[Array, "B V"]:
    return count_tokens(history.tokens_and_length()[0], valid_mask(history, over), vocab)


def _source_mask(source: Source, lengths: Lengths) -> Bool[Array, "B S"]:
    return jnp.arange(source.shape[1]) < lengths[:, None]


@processor(penalty=_PENALTY)
class repetition_penalty:
    """Make every token that occurs in the history less likely (Keskar et al. 2019).

    Args:
        penalty: number or [B], greater than 0; positive logits are divided by it, negative ones
            multiplied; 1 is off. Raises ConfigError otherwise.
        over: "all" counts the prompt too, as transformers does; "new" only what was drawn.

    >>> history = History(jnp.array([0]), jnp.array([[1, 2]]), jnp.array([2]))
    >>> jaxgen.repetition_penalty(2.0)(jnp.array([[4.0, 4.0, -4.0]]), history)
    Array([[ 4.,  2., -8.]], dtype=float32)
    """

    requires: ClassVar[Requires] = "tokens"
    penalty: Number
    over: Over = static("all")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        present = _count(history, self.over, logits.shape[-1]) > 0
        return _penalize(logits, present, column(self.penalty))


@processor(penalty=_PENALTY, source=_SOURCE, lengths=_LENGTHS)
class source_penalty:
    """Make every token that occurs in the source more likely, against hallucination.

    transformers' EncoderRepetitionPenaltyLogitsProcessor.

    Args:
        penalty: number or [B], greater than 0; above 1 favours the source's tokens, 1 is off.
        source: ids [B, S], padded on the right; lengths: [B], at most S. Raises ConfigError
            outside these ranges.

    >>> jaxgen.source_penalty(2.0, jnp.array([[1, 0]]), jnp.array([1]))(jnp.array([[4.0, 4.0]]))
    Array([[4., 8.]], dtype=float32)
    """

    penalty: Number
    source: Source
    lengths: Lengths

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        counted = _source_mask(self.source, self.lengths)
        present = count_tokens(jnp.asarray(self.source), counted, logits.shape[-1]) > 0
        return _penalize(logits, present, 1 / column(self.penalty))


@processor(amount=_AMOUNT)
class presence_penalty:
    """Subtract `amount` from the logit of every token that occurred, as OpenAI's interface does.

    Args:
        amount: number or [B], finite; 0 is off, below 0 repeats. Raises ConfigError otherwise.
        over: "new" counts only what was drawn, "all" the prompt too.

    >>> history = History(jnp.array([2]), jnp.array([[1, 1]]), jnp.array([2]))
    >>> jaxgen.presence_penalty(0.5)(jnp.array([[1.0, 1.0]]), history)
    Array([[1. , 0.5]], dtype=float32)
    """

    requires: ClassVar[Requires] = "tokens"
    amount: Number
    over: Over = static("new")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        present = _count(history, self.over, logits.shape[-1]) > 0
        return logits - column(self.amount) * present.astype(logits.dtype)


@processor(amount=_AMOUNT)
class frequency_penalty:
    """Subtract `amount` from a token's logit for each time that it occurred, as OpenAI's does.

    Args:
        amount: number or [B], finite; 0 is off, below 0 repeats. Raises ConfigError otherwise.
        over: "new" counts only what was drawn, "all" the prompt too.

    >>> history = History(jnp.array([2]), jnp.array([[1, 1]]), jnp.array([2]))
    >>> jaxgen.frequency_penalty(0.5)(jnp.array([[1.0, 1.0]]), history)
    Array([[1., 0.]], dtype=float32)
    """

    requires: ClassVar[Requires] = "tokens"
    amount: Number
    over: Over = static("new")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        count = _count(history, self.over, logits.shape[-1])
        return logits - column(self.amount) * count.astype(logits.dtype)


@processor(size=at_least(0))
class no_repeat_ngram:
    """Ban every token that would repeat an n-gram of the history (Paulus et al. 2017).

    Args:
        size: n, integer or [B], at least 0; 0 is off. Raises ConfigError below 0.

    >>> history = History(jnp.array([0]), jnp.array([[1, 2, 1]]), jnp.array([3]))
    >>> jaxgen.no_repeat_ngram(2)(jnp.zeros((1, 3)), history)
    Array([[  0.,   0., -inf]], dtype=float32)
    """

    requires: ClassVar[Requires] = "tokens"
    size: Whole

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        tokens, _ = history.tokens_and_length()
        ends = _ends_ngram(tokens, valid_mask(history), history, self.size)
        return jnp.where(count_tokens(tokens, ends, logits.shape[-1]) > 0, BANNED, logits)


@processor(size=at_least(0), source=_SOURCE, lengths=_LENGTHS)
class no_repeat_source:
    """Ban every token that would copy an n-gram of the source.

    transformers' EncoderNoRepeatNGramLogitsProcessor.

    Args:
        size: n, integer or [B], at least 0; 0 is off.
        source: ids [B, S], padded on the right; lengths: [B], at most S. Raises ConfigError
            outside these ranges.

    >>> history = History(jnp.array([0]), jnp.array([[1]]), jnp.array([1]))
    >>> block = jaxgen.no_repeat_source(2, jnp.array([[1, 2]]), jnp.array([2]))
    >>> block(jnp.zeros((1, 3)), history)
    Array([[  0.,   0., -inf]], dtype=float32)
    """

    requires: ClassVar[Requires] = "tokens"
    size: Whole
    source: Source
    lengths: Lengths

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        source = jnp.asarray(self.source)
        ends = _ends_ngram(source, _source_mask(source, self.lengths), history, self.size)
        return jnp.where(count_tokens(source, ends, logits.shape[-1]) > 0, BANNED, logits)


def _ends_ngram(
    tokens: Int[Array, "B S"], counted: Bool[Array, "B S"], history: History, size: Any
) -> Bool[Array, "B S"]:
    """Slots of `tokens` that end an n-gram that begins as the history ends; none for size 0.

    The size is data, so one program serves all sizes: it steps back over one more token of the
    prefix as long as some request's n-gram is longer.
    """
    generated, length = history.tokens_and_length()
    size = column(size)
    slots = jnp.arange(tokens.shape[1])[None]

    def one_more(back, alive):
        before = jnp.roll(tokens, back, axis=1)
        suffix = jnp.take_along_axis(generated, jnp.maximum(length - back, 0)[:, None], axis=1)
        same = (before == suffix) & (slots >= back) & (length >= back)[:, None]
        return alive & (same | (back >= size))

    most = jnp.minimum(jnp.max(size), tokens.shape[1] + 1)
    return lax.fori_loop(1, most, one_more, counted & (size > 0))
