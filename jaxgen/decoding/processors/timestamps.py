"""Whisper's rules of timestamps (Radford et al. 2022): which of them may stand where."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding.history import History, Requires, last_tokens, valid_mask
from jaxgen.decoding.per_request import Whole, column
from jaxgen.decoding.processors.base import BANNED, processor


@processor()
class Timestamps:
    """Let timestamps, the ids from `zero` on, stand in pairs and never go back.

    transformers' WhisperTimeStampLogitsProcessor.
    """

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "timestamps"
    zero: Whole
    stop: Whole
    first: Whole

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        begin, count = column(self.zero), history.num_generated[:, None]
        ids = jnp.arange(logits.shape[-1])[None]
        is_time, (before, last) = ids >= begin, jnp.split(last_tokens(history, 2), 2, axis=1)
        after_time = (count >= 1) & (last >= begin)
        paired = (count < 2) | (before >= begin)
        assert history.tokens is not None
        new = jnp.where(valid_mask(history, over="new"), history.tokens, -1)
        latest = jnp.max(new, axis=1, keepdims=True)
        # The second of a pair may repeat the first; a new pair begins later.
        least = jnp.where(after_time & ~paired, latest, latest + 1)
        banned = (ids == begin - 1) | (after_time & paired & is_time)
        banned |= after_time & ~paired & (ids < column(self.stop))
        banned |= (latest >= begin) & is_time & (ids < least)
        banned |= (count == 0) & (~is_time | (ids > begin + column(self.first)))
        logits = jnp.where(banned, BANNED, logits)
        # Where timestamps together are likelier than any other token, it is one of them.
        likely = jax.nn.logsumexp(jnp.where(is_time, logits, BANNED), axis=1, keepdims=True)
        other = jnp.max(jnp.where(is_time, BANNED, logits), axis=1, keepdims=True)
        return jnp.where(~is_time & (likely > other), BANNED, logits)


@arguments.checked(zero=at_least(1), stop=at_least(0), first=at_least(0))
def timestamps(zero: Whole, stop: Whole, *, first: Whole = 50) -> Timestamps:
    """Return the processor that a Whisper model draws timestamps by.

    Args:
        zero: id of <|0.00|>, integer or [B]; those after it count in steps of 0.02 s, and the id
            before it, <|notimestamps|>, is never drawn.
        stop: id that ends a text, integer or [B]; it may follow a single timestamp.
        first: largest step of the first timestamp, integer or [B]; 50 is 1 s. Raises ConfigError
            for negative ones.

    >>> history = History(jnp.array([0]), jnp.array([[7]]), jnp.array([1]))
    >>> timestamps(3, 0, first=0)(jnp.array([[1.0, 2.0, 3.0, 0.0, 9.0]]), history)
    Array([[-inf, -inf, -inf,   0., -inf]], dtype=float32)
    """
    return Timestamps(zero, stop, first)
