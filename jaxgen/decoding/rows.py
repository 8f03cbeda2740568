"""Caches of any kind by rows: reordered, repeated, rewound."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxgen.errors import ConfigError


def _knows(method: str):
    return lambda node: hasattr(node, method)


def take(cache: Any, rows: Int[Array, "R"]) -> Any:
    """Return the cache whose row i is row `rows[i]`.

    A node of the tree with a method `take(rows)` says itself where its rows are; the rows of any
    other array are its axis 0, and a scalar belongs to all rows.
    """

    def one(node):
        if hasattr(node, "take") and not hasattr(node, "dtype"):
            return node.take(rows)
        return node[rows] if jnp.ndim(node) else node

    return jax.tree.map(one, cache, is_leaf=_knows("take"))


def repeat(cache: Any, batch: int, times: int) -> Any:
    """Return the cache with each of its `batch` rows `times` times in a row."""
    return take(cache, jnp.repeat(jnp.arange(batch), times))


def rewind(cache: Any, back: Int[Array, "B"]) -> Any:
    """Return the cache as it was `back` tokens of each row ago.

    Only a cache that keeps every token can: it has `rewind(length)` and `length`, or it is an empty
    tree (a step that remembers nothing). Raises ConfigError for any other.
    """

    def one(node):
        if not hasattr(node, "rewind"):
            raise ConfigError(
                f"a cache that is a {type(node).__name__} can't go back, which speculative "
                f"decoding needs; give it rewind(length) and length"
            )
        return node.rewind(node.length - back)

    return jax.tree.map(one, cache, is_leaf=_knows("rewind"))
