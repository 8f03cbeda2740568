"""The smallest value that a top-k or top-p cut keeps.

Weights are integers: their sums are exact in any order, so every method gives the same cutoff,
whatever else is in the batch.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.ops import cpu
from jaxgen.ops.cpu.radix_select import Weigh, canonical_nan, radix_select


def mass_cutoff(
    x: Float[Array, "B V"], weigh: Weigh, need: Int[Array, "B 1"]
) -> Float[Array, "B 1"]:
    """Return the largest value of each row at which the weights of all values >= it reach `need`.

    weigh: weights, int32, 0 or more; a row's sum must fit int32 and reach `need`. NaN counts as the
    largest value.
    """
    if x.dtype == jnp.float32 and cpu.enabled("radix_select"):
        return radix_select(x, weigh, need)
    return sort_select(x, weigh, need)


def sort_select(
    x: Float[Array, "B V"], weigh: Weigh, need: Int[Array, "B 1"]
) -> Float[Array, "B 1"]:
    """`mass_cutoff` by sorting the row."""
    ordered = jnp.sort(canonical_nan(x), axis=-1, descending=True)
    reached = jnp.cumsum(weigh(ordered), axis=-1) >= need
    return jnp.take_along_axis(ordered, jnp.argmax(reached, axis=-1, keepdims=True), -1)
