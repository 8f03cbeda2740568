"""What a request has so far, for processors of logits that look back."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Needs = Literal["nothing", "made", "tokens"]
NEEDS: tuple[Needs, ...] = ("nothing", "made", "tokens")
NO_TOKEN = -2  # a slot that holds no token: equal to no id, and not to NOT_FINITE


class Past(NamedTuple):
    """The requests of a batch before their next token.

    made: how many tokens each request has drawn.
    tokens: its prompt and draws, slot = position; None unless some processor needs "tokens".
    length: how many slots are real; None with `tokens`.
    states: what each processor of the chain that keeps a state has kept, None for the others.
    """

    made: Int[Array, "B"]
    tokens: Int[Array, "B S"] | None = None
    length: Int[Array, "B"] | None = None
    states: tuple[Any, ...] = ()

    def known(self) -> tuple[Int[Array, "B S"], Int[Array, "B"]]:
        """Return (tokens, length), which a processor that needs "tokens" may rely on."""
        assert self.tokens is not None and self.length is not None
        return self.tokens, self.length


def needs(reader: Any) -> Needs:
    """Return what a processor or sampler reads besides logits; a plain function reads nothing."""
    return getattr(reader, "needs", "nothing")


def begin(sampler: Any, past: Past) -> Past:
    """Return the past with the states that the sampler's processors start from."""
    states = tuple(
        part.begin(past) if hasattr(part, "begin") else None
        for part in getattr(sampler, "processors", ())
    )
    return past._replace(states=states)


def advance(sampler: Any, past: Past, new: Int[Array, "B"]) -> Past:
    """Return the past after one more token of each request."""
    made = past.made + 1
    if past.tokens is None or past.length is None:
        return past._replace(made=made)
    rows = jnp.arange(new.shape[0])
    states = tuple(
        None if state is None else part.advance(state, new)
        for part, state in zip(getattr(sampler, "processors", ()), past.states, strict=True)
    )
    # A row that is done goes on beyond its slots: what it would write is dropped.
    tokens = past.tokens.at[rows, past.length].set(new, mode="drop")
    return Past(made, tokens, past.length + 1, states)


def real(past: Past, over: Literal["all", "new"] = "all") -> Bool[Array, "B S"]:
    """Return which slots hold tokens; over="new" leaves out those of the prompt."""
    tokens, length = past.known()
    slots = jnp.arange(tokens.shape[1])[None]
    mask = slots < length[:, None]
    return mask if over == "all" else mask & (slots >= (length - past.made)[:, None])


def last(past: Past, width: int) -> Int[Array, "B width"]:
    """Return the last `width` tokens of each request; NO_TOKEN where it is shorter."""
    tokens, length = past.known()
    slots = length[:, None] + jnp.arange(-width, 0)[None]
    found = jnp.take_along_axis(tokens, jnp.clip(slots, 0, tokens.shape[1] - 1), axis=1)
    return jnp.where(slots >= 0, found, NO_TOKEN)


def counts(
    tokens: Int[Array, "B S"], counted: Bool[Array, "B S"], vocab: int
) -> Int[Array, "B {vocab}"]:
    """Return how often each id occurs in the slots that are `counted`."""
    rows = jnp.arange(tokens.shape[0])[:, None]
    # An id past the vocabulary is dropped; a negative one would wrap around, so it is sent there.
    ids = jnp.where(counted & (tokens >= 0), tokens, vocab)
    return jnp.zeros((tokens.shape[0], vocab), jnp.int32).at[rows, ids].add(1, mode="drop")
