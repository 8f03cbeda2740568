"""Steps that read guesses ahead: those that equal the draws are kept, so texts stay the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from jaxgen.decoding import snapshots
from jaxgen.varying import while_loop


def read_ahead(
    step: Any,
    draft: Any,
    keys: Key[Array, "B"],
    draw: Callable[[Any, Array], Any],
    state: Any,
) -> Any:
    """Return the state of the decoding loop after one call of the step.

    draw: (state, logits [B, V]) -> the state after one more token. A copied guess is no draw, so to
    keep it where it equals the draw loses nothing against rejection sampling, and leaves each text
    as it is without guesses.
    """
    guess = draft.guess(state.token, state.history, draft.cache, keys).tokens
    read = jnp.concatenate([jnp.maximum(state.token, 0)[:, None], guess], axis=1)
    logits, cache = step(read, state.cache)

    def one(carry):
        i, now, right = carry
        after = draw(now, logits[:, i])
        now = jax.tree.map(partial(_where_row, right), after, now)
        guessed = read[:, jnp.minimum(i + 1, draft.count)] == now.token
        return i + 1, now, right & guessed & ~now.done

    # What a draw does not change stays out of the inner loop.
    begin = (jnp.zeros((), jnp.int32), state._replace(cache=None, calls=None), ~state.done)
    unread = lambda carry: (carry[0] <= draft.count) & jnp.any(carry[2])  # noqa: E731
    _, now, _ = while_loop(unread, one, begin)
    drawn = now.position - state.position  # the last of them is not read yet
    cache = snapshots.rewind(cache, draft.count + 1 - drawn)
    return now._replace(cache=cache, calls=state.calls + 1)


def put(x: Array, position: Array, value: Array) -> Array:
    """Return x [B, length, ...] with a value [B, ...] at a position, or at one of each row."""
    if position.ndim == 0:
        return x.at[:, position].set(value)
    return x.at[jnp.arange(len(x)), position].set(value, mode="drop")


def num_tokens(length: int, draft: Any = None) -> int:
    """Return how many tokens so many calls of the step give at most."""
    return length if draft is None else length * (draft.count + 1)


def _where_row(rows: Bool[Array, "B"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
