"""The tokens of a request so far, for logits processors that read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

Requires = Literal["nothing", "num_generated", "tokens"]
REQUIRES: tuple[Requires, ...] = ("nothing", "num_generated", "tokens")
NO_TOKEN = -2  # an empty slot; differs from every id and from NOT_FINITE


class History(NamedTuple):
    """The tokens of each request of a batch before its next one.

    num_generated: number of new tokens.
    tokens: prompt and new tokens, slot = position; None unless a processor requires "tokens".
    length: number of valid slots; None with `tokens`.
    states: state of each stateful processor of the chain, None for the others.
    """

    num_generated: Int[Array, "B"]
    tokens: Int[Array, "B S"] | None = None
    length: Int[Array, "B"] | None = None
    states: tuple[Any, ...] = ()

    def tokens_and_length(self) -> tuple[Int[Array, "B S"], Int[Array, "B"]]:
        """Return (tokens, length); both are set for a processor that requires "tokens"."""
        assert self.tokens is not None and self.length is not None
        return self.tokens, self.length


def required_history(processor: Any) -> Requires:
    """Return what a processor or sampler reads besides logits; "nothing" for a plain function."""
    return getattr(processor, "requires", "nothing")


def init_states(sampler: Any, history: History) -> History:
    """Return the history with the initial states of the sampler's processors."""
    states = tuple(
        part.begin(history) if hasattr(part, "begin") else None
        for part in getattr(sampler, "processors", ())
    )
    return history._replace(states=states)


def advance_states(sampler: Any, states: tuple[Any, ...], new: Int[Array, "B"]) -> tuple[Any, ...]:
    """Return the states of the sampler's processors after one more token of each request."""
    return tuple(
        None if state is None else part.advance(state, new)
        for part, state in zip(getattr(sampler, "processors", ()), states, strict=True)
    )


def replay(
    history: History,
    starts: Int[Array, "R"],
    advance: Callable[[Int[Array, "B"], Int[Array, "B"]], Int[Array, "B"]],
) -> Int[Array, "B"]:
    """Return the states of requests, `starts` before their new tokens, after all of these."""
    tokens, length = history.tokens_and_length()
    num_generated = history.num_generated

    def one_more(i, state):
        slot = (length - num_generated + i)[:, None]
        new = jnp.take_along_axis(tokens, jnp.maximum(slot, 0), axis=1)[:, 0]
        return jnp.where(i < num_generated, advance(state, new), state)

    states = jnp.broadcast_to(starts, num_generated.shape)
    return lax.fori_loop(0, jnp.max(num_generated), one_more, states)


def append_token(sampler: Any, history: History, new: Int[Array, "B"]) -> History:
    """Return the history with one more token of each request."""
    num_generated = history.num_generated + 1
    if history.tokens is None or history.length is None:
        return history._replace(num_generated=num_generated)
    rows = jnp.arange(new.shape[0])
    states = advance_states(sampler, history.states, new)
    # Finished rows run past their slots; those writes are dropped.
    tokens = history.tokens.at[rows, history.length].set(new, mode="drop")
    return History(num_generated, tokens, history.length + 1, states)


def valid_mask(history: History, over: Literal["all", "new"] = "all") -> Bool[Array, "B S"]:
    """Return the mask of valid slots; over="new" excludes those of the prompt."""
    tokens, length = history.tokens_and_length()
    slots = jnp.arange(tokens.shape[1])[None]
    mask = slots < length[:, None]
    return mask if over == "all" else mask & (slots >= (length - history.num_generated)[:, None])


def last_tokens(history: History, width: int) -> Int[Array, "B width"]:
    """Return the last `width` tokens of each request; padded on the left with NO_TOKEN."""
    tokens, length = history.tokens_and_length()
    slots = length[:, None] + jnp.arange(-width, 0)[None]
    window = jnp.take_along_axis(tokens, jnp.clip(slots, 0, tokens.shape[1] - 1), axis=1)
    return jnp.where(slots >= 0, window, NO_TOKEN)


def count_tokens(
    tokens: Int[Array, "B S"], counted: Bool[Array, "B S"], vocab: int
) -> Int[Array, "B {vocab}"]:
    """Return the number of occurrences of each id in the slots that are `counted`."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    # Ids beyond the vocabulary are dropped. Negative ones would wrap around, so map them there.
    ids = jnp.where(counted & (tokens >= 0), tokens, vocab)
    return jnp.zeros((tokens.shape[0], vocab), jnp.int32).at[rows, ids].add(1, mode="drop")
