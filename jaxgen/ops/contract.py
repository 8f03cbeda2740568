"""Every product with a weight goes through here, so that other leaves can replace arrays."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.mesh import gather, shards


def contract(equation: str, x: Float[Array, "..."], w: Any, *, dtype: str) -> Float[Array, "..."]:
    """Return einsum(equation, x, w) computed in `dtype`; a leaf with `.contract` does it itself.

    Quantised, low-rank or adapted leaves implement `leaf.contract(equation, x, dtype)`.
    """
    if hasattr(w, "contract"):
        return w.contract(equation, x, dtype)
    left, _, rest = equation.partition(",")
    width = x.shape[left.index("D")] if "D" in left else None
    w = gather(w.astype(dtype), rest.partition("->")[0], width)
    return product(equation, x.astype(dtype), w)


def product(equation: str, x: Float[Array, "..."], w: Array) -> Float[Array, "..."]:
    """Return einsum(equation, x, w) as one product of two matrices, where the letters allow it.

    On a CPU the gradient of a product over B and T separately is transposed by hand, at four
    times its own cost; flattened to one axis it is a plain product again. Axes that are spread
    over a mesh stay apart: their flattening has no layout.
    """
    inputs, _, out = equation.partition("->")
    left, right = inputs.split(",")
    rows = left.rstrip(right)
    inner = left.removeprefix(rows)
    first = right.startswith(inner)
    columns = right.removeprefix(inner) if first else right.removesuffix(inner)
    flat = out == rows + columns and inner and shards(left + right) == 1
    if not flat or set(columns) & set(left):
        return jnp.einsum(equation, x, w)
    wide = prod(x.shape[len(rows) :])
    matrix = w.reshape((wide, -1) if first else (-1, wide))
    x, side, shape = x.reshape(-1, wide), 0 if first else 1, x.shape
    if len(x) == 1:
        # One row: the matrix goes first, which a CPU reads up to a quarter faster.
        y = lax.dot_general(matrix, x, (((side,), (1,)), ((), ())))
    else:
        y = lax.dot_general(x, matrix, (((1,), (side,)), ((), ())))
    kept = w.shape[len(inner) :] if first else w.shape[: -len(inner)]
    return y.reshape(*shape[: len(rows)], *kept)


def lookup(
    table: Any, ids: Int[Array, "..."], *, dtype: str, axes: str = "VD"
) -> Float[Array, "... D"]:
    """Return rows of an embedding table in `dtype`; a leaf with `.lookup` does it itself.

    axes: the table's own, "VD" for tokens, "SD" for positions.
    """
    if hasattr(table, "lookup"):
        return table.lookup(ids, dtype)
    return jnp.take(gather(table, axes), ids, axis=0, mode="clip").astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Biased:
    """A weight whose products get a bias on their last axis."""

    weight: Any
    bias: Any  # [V], or what a transformation puts in the place of a leaf

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return the product plus the bias."""
        y = contract(equation, x, self.weight, dtype=dtype)
        return y + self.bias.astype(y.dtype)
