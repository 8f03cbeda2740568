"""Matmuls in the forms that XLA:CPU runs fast; the plain form of all is one `dot_general`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxgen.export import are_known
from jaxgen.ops.cpu import enabled

FEW = 64  # rows of a decoding step at most
BLOCK = 2**20  # bytes of float32 that stay in a core's own cache


def of_rows(x: Array, w: Array) -> Array | None:
    """Return x [R, I] times w [C, I] transposed, where R is 1 or few; None if plain is as fast."""
    rows = x.shape[0]
    if not are_known(rows):
        return None
    if w.dtype.itemsize < 4 and (y := of_one_row(x, (w,), _widen)) is not None:
        return y
    # Of bfloat16, jaxlib 0.10.2 has no such matmul in some shapes.
    if 1 < rows <= FEW and x.dtype == jnp.float32 and enabled("few_rows"):
        # XLA is faster with the weight on the left; without the barrier it would cancel the two
        # transpositions.
        is_narrow = w.dtype != x.dtype
        if is_narrow and (y := by_blocks(x, len(w), partial(_slice, x.dtype, w))) is not None:
            return y
        return lax.optimization_barrier(_weight_on_the_left(w.astype(x.dtype), x)).T
    return None


def of_one_row(x: Array, parts: tuple[Array, ...], widen: Callable[..., Array]) -> Array | None:
    """Return x [R, I] times a weight [C, I] transposed, if R is 1; None if plain is as fast.

    widen: returns the weight in float32, of its parts.
    """
    if not are_known(len(x)) or len(x) != 1 or not enabled("one_row"):
        return None
    # In this form alone float32 is made of narrower weights as they are read. Tied to the row, or
    # they would be written to memory before the loop over tokens.
    dtype, (x, parts) = x.dtype, lax.optimization_barrier((x, parts))
    # rem(x, inf) is a no-op that XLA does not duplicate into the matmul loop; it pins x outside.
    x = lax.rem(x.astype(jnp.float32), jnp.float32(jnp.inf))
    return (x @ widen(*parts).T).astype(dtype)


def _widen(w: Array) -> Array:
    return w.astype(jnp.float32)


def _slice(dtype: Any, w: Array, begin: Any, size: int) -> Array:
    return lax.dynamic_slice_in_dim(w, begin, size).astype(dtype)


def by_blocks(x: Array, columns: int, widen: Callable[[Any, int], Array]) -> Array | None:
    """Return x [R, I] times a weight [columns, I] transposed; None if plain is as fast.

    Widened at once, a narrow weight would be written to memory before the loop over tokens: as many
    bytes a step as of float32, and as many seconds a call as several steps.
    widen: returns `size` rows of the weight from `begin` on, in the dtype of x, where slices clamp.
    """
    rows, inner = x.shape
    if not are_known(rows) or rows > FEW or x.dtype != jnp.float32 or not enabled("few_rows"):
        return None
    size = max(BLOCK // (x.dtype.itemsize * inner), 1)
    if size >= columns:
        return None

    def block(i: Array, y: Array) -> Array:
        # The last block begins where it fits (so all slices clamp), and overlaps the one before.
        part = _weight_on_the_left(widen(i * size, size), x)
        return lax.dynamic_update_slice_in_dim(y, part, i * size, 0)

    return lax.fori_loop(0, ceil(columns / size), block, jnp.zeros((columns, rows), x.dtype)).T


def _weight_on_the_left(w: Array, x: Array) -> Array:
    return lax.dot_general(w, x, (((1,), (1,)), ((), ())))


def of_bfloat16(x: Array, y: Array, left: int, right: int) -> Array:
    """Return the product of bfloat16 matrices over axis `left` of x and `right` of y.

    XLA takes the processor's own instructions only where sums are float32, which they are in
    either case, and there are two rows or more: else it is two to four times as slow.
    """
    rows = 1 - left
    one = x.shape[rows] == 1
    x = jnp.concatenate([x, jnp.zeros_like(x)], axis=rows) if one else x
    axes = (((left,), (right,)), ((), ()))
    y = lax.dot_general(x, y, axes, preferred_element_type=jnp.float32).astype(x.dtype)
    return y[:1] if one else y
