"""Processors that force or forbid tokens by place: first, last, before a minimum, always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen import arguments
from jaxgen.arguments import above, at_least
from jaxgen.decoding.history import History, Requires
from jaxgen.decoding.per_request import Number, TokenIds, Whole, column, ids, marked, refuse
from jaxgen.decoding.processors.truncation import BANNED
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class Suppress:
    """Bans `tokens` always."""

    tokens: TokenIds

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return jnp.where(marked(self.tokens, logits.shape[-1]), BANNED, logits)


@register_dataclass
@dataclass(frozen=True)
class SuppressAt:
    """Bans `tokens` from the draw at one `place`."""

    requires: ClassVar[Requires] = "num_generated"
    name: ClassVar[str] = "suppress_at"
    place: Whole
    tokens: TokenIds

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        banned = marked(self.tokens, logits.shape[-1])
        here = history.num_generated[:, None] == column(self.place)
        return jnp.where(banned & here, BANNED, logits)


@register_dataclass
@dataclass(frozen=True)
class ForceAt:
    """Makes `tokens` the only ones that the draw at one `place` can give, equally likely."""

    requires: ClassVar[Requires] = "num_generated"
    name: ClassVar[str] = "force_at"
    place: Whole
    tokens: TokenIds

    def validate(self, length: int, beams: int) -> None:
        """Raise ConfigError if the place is past `length`."""
        message = f"never comes: length={length} ends before; lower one"
        refuse(self.place, lambda x: x >= length, f"a token forced at place={{}} {message}")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        forced = jnp.where(marked(self.tokens, logits.shape[-1]), 0.0, BANNED)
        here = history.num_generated[:, None] == column(self.place)
        return jnp.where(here, forced, logits)


@register_dataclass
@dataclass(frozen=True)
class MinNewTokens:
    """Bans the `stop` ids until `count` tokens are drawn."""

    requires: ClassVar[Requires] = "num_generated"
    name: ClassVar[str] = "min_new_tokens"
    count: Whole
    stop: TokenIds

    def validate(self, length: int, beams: int) -> None:
        """Raise ConfigError if no text could end within `length`."""
        message = f"exceeds length={length}, so that no text could end; lower one"
        refuse(self.count, lambda x: x > length, f"min_new_tokens={{}} {message}")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        early = history.num_generated[:, None] < column(self.count)
        return jnp.where(marked(self.stop, logits.shape[-1]) & early, BANNED, logits)


@register_dataclass
@dataclass(frozen=True)
class MinLength:
    """Bans the `stop` ids until prompt and draws are `count` tokens together."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "min_length"
    count: Whole
    stop: TokenIds

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        early = history.tokens_and_length()[1][:, None] < column(self.count)
        return jnp.where(marked(self.stop, logits.shape[-1]) & early, BANNED, logits)


@register_dataclass
@dataclass(frozen=True)
class LengthDecay:
    """Raises the `stop` logits by |logit| * (factor^n - 1), n draws after the `start`th."""

    requires: ClassVar[Requires] = "num_generated"
    name: ClassVar[str] = "length_decay"
    start: Whole
    factor: Number
    stop: TokenIds

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        late = jnp.maximum(history.num_generated[:, None] - column(self.start), 0)
        grown = jnp.power(jnp.asarray(column(self.factor), logits.dtype), late) - 1
        # Of the absolute value, so that a negative logit rises too; a banned one stays banned.
        more = jnp.where(jnp.isfinite(logits), jnp.abs(logits) * grown, 0.0)
        return jnp.where(marked(self.stop, logits.shape[-1]) & (late > 0), logits + more, logits)


def suppress(tokens: Any) -> Suppress:
    """Return a processor that never lets `tokens` (ids [E], or [B, E] by request) be drawn."""
    return Suppress(ids("tokens", tokens))


@arguments.checked(place=at_least(0))
def suppress_first(tokens: Any, *, place: Whole = 0) -> SuppressAt:
    """Return a processor that keeps `tokens` from being the first new token (or at `place`)."""
    return SuppressAt(place, ids("tokens", tokens))


@arguments.checked(place=at_least(0))
def force_first(token: Any, *, place: Whole = 0) -> ForceAt:
    """Return a processor that makes `token` (or one of several) the first new one (or at `place`).

    place: int or [B], counted from 0; a row whose place never comes is left alone.
    """
    return ForceAt(place, ids("token", token))


@arguments.checked(length=at_least(1))
def force_last(token: Any, *, length: Whole) -> ForceAt:
    """Return a processor that makes `token` (or one of several) the `length`th new token.

    length: new tokens in all, int or [B]; pass the same to the decoder.
    """
    return ForceAt(length - 1, ids("token", token))


@arguments.checked(count=at_least(0))
def min_new_tokens(count: Whole, stop: Any) -> MinNewTokens:
    """Return a processor that bans the `stop` ids until `count` (int or [B]) tokens are drawn."""
    return MinNewTokens(count, ids("stop", stop))


@arguments.checked(count=at_least(0))
def min_length(count: Whole, stop: Any) -> MinLength:
    """Return a processor that bans the `stop` ids while prompt and draws are under `count`."""
    return MinLength(count, ids("stop", stop))


@arguments.checked(start=at_least(0), factor=above(0, note="1 is off"))
def length_decay(start: Whole, factor: Number, stop: Any) -> LengthDecay:
    """Return transformers' exponential length decay: `stop` grows likelier from `start` on.

    factor: scalar or [B], above 1 to end sooner. Raises ConfigError unless greater than 0.
    """
    return LengthDecay(start, factor, ids("stop", stop))
