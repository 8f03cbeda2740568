"""Matmuls in the forms that XLA:CPU runs fast; the plain form of all is one `dot_general`."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from jaxgen.export import are_known
from jaxgen.ops.cpu import enabled

FEW = 64  # rows of a decoding step at most


def of_rows(x: Array, w: Array) -> Array | None:
    """Return x [R, I] times w [C, I] transposed, where R is 1 or few; None if plain is as fast."""
    rows = x.shape[0]
    if not are_known(rows):
        return None
    if rows == 1 and w.dtype.itemsize < 4 and enabled("one_row"):
        # In this form alone float32 is made of narrower weights as they are read. Tied to the row,
        # or they would be written to memory before the loop over tokens.
        dtype, (x, w) = x.dtype, lax.optimization_barrier((x, w))
        # rem(x, inf) is a no-op that XLA does not duplicate into the matmul loop; it pins x
        # outside.
        x = lax.rem(x.astype(jnp.float32), jnp.float32(jnp.inf))
        return (x @ w.astype(jnp.float32).T).astype(dtype)
    # Of bfloat16, jaxlib 0.10.2 has no such matmul in some shapes.
    if 1 < rows <= FEW and x.dtype == jnp.float32 and enabled("few_rows"):
        # XLA is faster with the weight on the left; without the barrier it would cancel the two
        # transpositions.
        axes = (((1,), (1,)), ((), ()))
        return lax.optimization_barrier(lax.dot_general(w.astype(x.dtype), x, axes)).T
    return None


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
