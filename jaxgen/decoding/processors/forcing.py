"""Processors that force or forbid tokens by position: first, last, before a minimum, always.

`position` counts new tokens from 0. Token ids are one id, ids [E], or a list of ids [B, E] for each
request; rows of different lengths are padded with NO_TOKEN.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxgen import arguments, arrays
from jaxgen.arguments import Call, above, at_least
from jaxgen.arrays import Arrays, Axes
from jaxgen.decoding.history import NO_TOKEN, History, Requires
from jaxgen.decoding.per_request import Number, Whole, column, refuse
from jaxgen.decoding.processors.base import BANNED, processor
from jaxgen.errors import ConfigError

TokenIds = Annotated[Any, Axes("integer", ("E", "#B E"))]
IDS = Arrays((Axes("integer", ("", "E", "B E")),), ())


def _token_ids(name: str, value: Any) -> Array | np.ndarray:
    """Return token ids as an array [E] or [B, E]; ConfigError for none, or a negative one."""
    if isinstance(value, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in value):
        rows = [row if isinstance(row, (list, tuple)) else [row] for row in value]
        width = max(map(len, rows))
        value = [[*row, *[NO_TOKEN] * (width - len(row))] for row in rows]
    call = Call({})
    value = arrays.read_arrays(IDS, value, name, call)
    if not np.size(value):
        raise ConfigError(f"{name} names no token id; give at least one")
    at_least(0, also=(NO_TOKEN,))(name, value, call)
    value = np.int32(value) if isinstance(value, int) else arrays.as_int32(value, name)
    return value[None] if value.ndim == 0 else value


def _is_listed(tokens: Any, vocab: int) -> Bool[Array, "_ V"]:
    """Return which ids of the vocabulary are among `tokens` ([E] or [B, E]), as [1 or B, V]."""
    tokens = jnp.atleast_2d(jnp.asarray(tokens))
    rows = jnp.arange(tokens.shape[0])[:, None]
    blank = jnp.zeros((tokens.shape[0], vocab), bool)
    return blank.at[rows, jnp.where(tokens < 0, vocab, tokens)].set(True, mode="drop")


@processor()
class Suppress:
    """Ban `tokens` always."""

    tokens: TokenIds

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return jnp.where(_is_listed(self.tokens, logits.shape[-1]), BANNED, logits)


@processor()
class SuppressAt:
    """Ban `tokens` from the draw at one `place`."""

    requires: ClassVar[Requires] = "num_generated"
    name: ClassVar[str] = "suppress_first"
    place: Whole
    tokens: TokenIds

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        banned = _is_listed(self.tokens, logits.shape[-1])
        here = history.num_generated[:, None] == column(self.place)
        return jnp.where(banned & here, BANNED, logits)


@processor()
class ForceAt:
    """Make `tokens` the only ones that the draw at one `place` can give, equally likely."""

    requires: ClassVar[Requires] = "num_generated"
    name: ClassVar[str] = "force_first / force_last"
    place: Whole
    tokens: TokenIds

    def validate(self, length: int, beams: int) -> None:
        """Raise ConfigError if the place is past `length`."""
        message = f"never comes: length={length} ends before; lower one"
        refuse(self.place, lambda x: x >= length, f"a token forced at place={{}} {message}")

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        forced = jnp.where(_is_listed(self.tokens, logits.shape[-1]), 0.0, BANNED)
        here = history.num_generated[:, None] == column(self.place)
        return jnp.where(here, forced, logits)


@processor()
class MinNewTokens:
    """Ban the `stop` ids until `count` tokens are drawn."""

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
        return jnp.where(_is_listed(self.stop, logits.shape[-1]) & early, BANNED, logits)


@processor()
class MinLength:
    """Ban the `stop` ids until prompt and draws are `count` tokens together."""

    requires: ClassVar[Requires] = "tokens"
    name: ClassVar[str] = "min_length"
    count: Whole
    stop: TokenIds

    def __call__(self, logits: Float[Array, "B V"], history: History) -> Float[Array, "B V"]:
        early = history.tokens_and_length()[1][:, None] < column(self.count)
        return jnp.where(_is_listed(self.stop, logits.shape[-1]) & early, BANNED, logits)


@processor()
class LengthDecay:
    """Raise the `stop` logits by |logit| * (factor^n - 1), n draws after the `start`th."""

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
        raised = _is_listed(self.stop, logits.shape[-1]) & (late > 0)
        return jnp.where(raised, logits + more, logits)


def suppress(tokens: Any) -> Suppress:
    """Return a processor that never lets `tokens` be drawn.

    Args:
        tokens: an id, ids [E], or ids [B, E] by request. Raises ConfigError for none or a
            negative one.

    >>> jaxgen.suppress([0])(jnp.array([[1.0, 2.0]]))
    Array([[-inf,   2.]], dtype=float32)
    """
    return Suppress(_token_ids("tokens", tokens))


@arguments.checked(place=at_least(0))
def suppress_first(tokens: Any, *, place: Whole = 0) -> SuppressAt:
    """Return a processor that keeps `tokens` from being the first new token.

    Args:
        tokens: an id, ids [E], or ids [B, E] by request.
        place: position among the new tokens, integer or [B], at least 0. Raises ConfigError below.

    >>> jaxgen.suppress_first([0])(jnp.array([[1.0, 2.0]]), History(jnp.array([0])))
    Array([[-inf,   2.]], dtype=float32)
    """
    return SuppressAt(place, _token_ids("tokens", tokens))


@arguments.checked(place=at_least(0))
def force_first(token: Any, *, place: Whole = 0) -> ForceAt:
    """Return a processor that makes `token`, or one of several, the first new token.

    Args:
        token: an id, ids [E], or ids [B, E] by request; several are equally likely.
        place: position among the new tokens, integer or [B], at least 0; a request that is shorter
            is left alone. Raises ConfigError below 0.

    >>> jaxgen.force_first(0)(jnp.array([[1.0, 2.0]]), History(jnp.array([0])))
    Array([[  0., -inf]], dtype=float32)
    """
    return ForceAt(place, _token_ids("token", token))


@arguments.checked(length=at_least(1))
def force_last(token: Any, *, length: Whole) -> ForceAt:
    """Return a processor that makes `token`, or one of several, the `length`th new token.

    Args:
        token: an id, ids [E], or ids [B, E] by request; several are equally likely.
        length: new tokens in all, integer or [B], at least 1; pass the same to the decoder. Raises
            ConfigError below 1.

    >>> jaxgen.force_last(0, length=3)(jnp.array([[1.0, 2.0]]), History(jnp.array([2])))
    Array([[  0., -inf]], dtype=float32)
    """
    return ForceAt(length - 1, _token_ids("token", token))


@arguments.checked(count=at_least(0))
def min_new_tokens(count: Whole, stop: Any) -> MinNewTokens:
    """Return a processor that bans the `stop` ids until `count` tokens are drawn.

    Args:
        count: new tokens, integer or [B], at least 0. Raises ConfigError below 0.
        stop: an id, ids [E], or ids [B, E] by request.

    >>> jaxgen.min_new_tokens(3, [0])(jnp.array([[1.0, 2.0]]), History(jnp.array([2])))
    Array([[-inf,   2.]], dtype=float32)
    """
    return MinNewTokens(count, _token_ids("stop", stop))


@arguments.checked(count=at_least(0))
def min_length(count: Whole, stop: Any) -> MinLength:
    """Return a processor that bans the `stop` ids while prompt and draws are under `count` tokens.

    Args:
        count: tokens in all, integer or [B], at least 0. Raises ConfigError below 0.
        stop: an id, ids [E], or ids [B, E] by request.

    >>> history = History(jnp.array([1]), jnp.array([[1, 1]]), jnp.array([2]))
    >>> jaxgen.min_length(3, [0])(jnp.array([[1.0, 2.0]]), history)
    Array([[-inf,   2.]], dtype=float32)
    """
    return MinLength(count, _token_ids("stop", stop))


@arguments.checked(start=at_least(0), factor=above(0, note="1 is off"))
def length_decay(start: Whole, factor: Number, stop: Any) -> LengthDecay:
    """Return a processor that makes `stop` likelier with each new token after `start`.

    transformers' ExponentialDecayLengthPenalty.

    Args:
        start: new tokens before it begins, integer or [B], at least 0.
        factor: number or [B], greater than 0; above 1 ends sooner, 1 is off. Raises ConfigError
            outside these ranges.
        stop: an id, ids [E], or ids [B, E] by request.

    >>> jaxgen.length_decay(1, 2.0, [0])(jnp.array([[1.0, 1.0]]), History(jnp.array([3])))
    Array([[4., 1.]], dtype=float32)
    """
    return LengthDecay(start, factor, _token_ids("stop", stop))
