"""Reorder and repeat the rows of any cache."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def take(cache: Any, rows: Int[Array, "R"]) -> Any:
    """Return the cache whose row i is row `rows[i]`.

    A node of the tree may have its own `take(rows)`. The rows of any other array are its axis 0; a
    scalar is shared by all rows.
    """

    def one(node):
        if hasattr(node, "take") and not hasattr(node, "dtype"):
            return node.take(rows)
        return node[rows] if jnp.ndim(node) else node

    return jax.tree.map(one, cache, is_leaf=lambda node: hasattr(node, "take"))


def repeat(cache: Any, batch: int, times: int) -> Any:
    """Return the cache with each of its `batch` rows repeated `times` times, as jnp.repeat."""
    return take(cache, jnp.repeat(jnp.arange(batch), times))
