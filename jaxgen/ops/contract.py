"""Every product with a weight goes through here, so that other leaves can replace arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.mesh import gather, shards
from jaxgen.mesh.place import is_shared


def contract(equation: str, x: Float[Array, "..."], w: Any, *, dtype: str) -> Float[Array, "..."]:
    """Return einsum(equation, x, w) computed in `dtype`; a leaf with `.contract` does it itself.

    Quantised, low-rank or adapted leaves implement `leaf.contract(equation, x, dtype)`.
    """
    if hasattr(w, "contract"):
        return w.contract(equation, x, dtype)
    x, w = x.astype(dtype), w.astype(dtype)
    return _shared(equation, x, w) if is_shared() else _with_whole(equation, x, w)


def _with_whole(equation: str, x: Array, w: Array) -> Array:
    left, _, rest = equation.partition(",")
    width = x.shape[left.index("D")] if "D" in left else None
    return product(equation, x, gather(w, rest.partition("->")[0], width))


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
    y = lax.dot_general(x.reshape(-1, wide), matrix, (((1,), (0 if first else 1,)), ((), ())))
    kept = w.shape[len(inner) :] if first else w.shape[: -len(inner)]
    return y.reshape(*x.shape[: len(rows)], *kept)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _shared(equation: str, x: Array, w: Array) -> Array:
    """Return the product with a weight that devices share, gathered anew for the backward pass.

    Kept from one pass to the other, gathered weights of all layers would be the whole model on
    every device: what sharing them was to save.
    """
    return _with_whole(equation, x, w)


def _shared_forward(equation: str, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _with_whole(equation, x, w), (x, w)


def _shared_backward(equation: str, kept: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    # Tied to the gradient, or the compiler would find both gathers equal and keep the first.
    (x, w), grad = lax.optimization_barrier((kept, grad))
    return jax.vjp(partial(_with_whole, equation), x, w)[1](grad)


_shared.defvjp(_shared_forward, _shared_backward)


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
