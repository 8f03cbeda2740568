"""Prefill of the classic models, one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


def consume(
    read: Callable[[Int[Array, "B"], Any], Any],
    cache: Any,
    prompt: Int[Array, "B T"],
    lengths: Int[Array, "B"],
) -> tuple[Int[Array, "B"], Any]:
    """Return (first, cache): all of each prompt but its last token read, and that last token.

    read: (tokens, cache) -> cache; each leaf of the cache has a row for each prompt.
    """

    def more(cache, inputs):
        position, tokens = inputs
        going = position < lengths - 1

        def select(new, old):
            return jnp.where(going.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(select, read(tokens, cache), cache), None

    cache, _ = lax.scan(more, cache, (jnp.arange(prompt.shape[1]), prompt.T))
    return jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0], cache
