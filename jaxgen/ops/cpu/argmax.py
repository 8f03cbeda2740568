"""The index of a row's maximum; the plain form is `jnp.argmax`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.ops.cpu import enabled


def argmax(x: Float[Array, "... V"]) -> Int[Array, "..."]:
    """Return jnp.argmax over the last axis, int32: the first of equals, and NaN as the maximum."""
    form = two_passes if enabled("argmax") else jnp.argmax
    return form(x, axis=-1).astype(jnp.int32)


def two_passes(x: Float[Array, "... V"], axis: int = -1) -> Int[Array, "..."]:
    """Return the index by finding the maximum, and then where it is first.

    XLA:CPU compares pairs of number and index one by one; these two it does eight at a time.
    """
    assert axis == -1
    maximum = jnp.max(x, axis=-1, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where((x == maximum) | jnp.isnan(x), index, x.shape[-1] - 1), axis=-1)
