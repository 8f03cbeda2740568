"""The place of a row's largest number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.mesh.place import platform


def argmax(x: Float[Array, "... V"]) -> Int[Array, "..."]:
    """Return jnp.argmax over the last axis, int32: the first of equals, and NaN as the largest."""
    return (two_passes(x) if platform() == "cpu" else jnp.argmax(x, axis=-1)).astype(jnp.int32)


def two_passes(x: Float[Array, "... V"]) -> Int[Array, "..."]:
    """Return the place of the largest by finding what it is, and then where it is first.

    XLA on a CPU compares number with place one by one; these two it does eight at a time.
    """
    largest = jnp.max(x, axis=-1, keepdims=True)
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where((x == largest) | jnp.isnan(x), places, x.shape[-1] - 1), axis=-1)
