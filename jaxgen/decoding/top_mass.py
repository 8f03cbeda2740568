"""The smallest value that a top-k or top-p cut keeps.

Weights are integers: their sums are exact in any order, so every method gives the same cutoff,
whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.export import are_known
from jaxgen.mesh.place import platform
from jaxgen.varying import fori_loop

Weigh = Callable[[Float[Array, "B V"]], Int[Array, "B V"]]  # a weight is a function of its value
BITS = 32
ROWS = 8  # at once, so that all sums over them read from the CPU's cache


def mass_cutoff(
    x: Float[Array, "B V"], weigh: Weigh, need: Int[Array, "B 1"]
) -> Float[Array, "B 1"]:
    """Return the largest value of each row at which the weights of all values >= it reach `need`.

    weigh: weights, int32, 0 or more; a row's sum must fit int32 and reach `need`. NaN counts as the
    largest value.
    """
    if x.dtype == jnp.float32 and platform() == "cpu":
        return radix_select(x, weigh, need)
    return sort_select(x, weigh, need)


def sort_select(
    x: Float[Array, "B V"], weigh: Weigh, need: Int[Array, "B 1"]
) -> Float[Array, "B 1"]:
    """`mass_cutoff` by sorting the row."""
    ordered = jnp.sort(_canonical_nan(x), axis=-1, descending=True)
    reached = jnp.cumsum(weigh(ordered), axis=-1) >= need
    return jnp.take_along_axis(ordered, jnp.argmax(reached, axis=-1, keepdims=True), -1)


def radix_select(
    x: Float[Array, "B V"], weigh: Weigh, need: Int[Array, "B 1"]
) -> Float[Array, "B 1"]:
    """`mass_cutoff` for float32 by radix selection, from the highest bit of the value.

    One sum over the row per bit: on a CPU at most a sixth of the time of a sort.
    """
    rows = _as_integers(_canonical_nan(x)), weigh(x), need
    if not are_known(x.shape[0]) or x.shape[0] <= ROWS:
        return _as_floats(_radix_select(rows))
    return _as_floats(lax.map(_radix_select, rows, batch_size=ROWS))


def _radix_select(rows: tuple[Array, Array, Array]) -> Array:
    keys, weights, need = rows

    def set_bit(bit: Array, cutoff: Array) -> Array:
        higher = cutoff | (jnp.uint32(1) << (BITS - 1 - bit).astype(jnp.uint32))
        total = jnp.sum(jnp.where(keys >= higher, weights, 0), axis=-1, keepdims=True)
        return jnp.where(total >= need, higher, cutoff)

    return fori_loop(0, BITS, set_bit, jnp.zeros(need.shape, jnp.uint32))


def _canonical_nan(x: Float[Array, "B V"]) -> Float[Array, "B V"]:
    """Give all NaNs one bit pattern: as integers, NaNs of both signs would differ."""
    return jnp.where(jnp.isnan(x), jnp.nan, x)


def _as_integers(x: Float[Array, "B V"]) -> Array:
    """Return integers in the order of the floats."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return bits ^ jnp.where(bits >> (BITS - 1), jnp.uint32(0xFFFFFFFF), jnp.uint32(0x80000000))


def _as_floats(keys: Array) -> Float[Array, "B V"]:
    bits = keys ^ jnp.where(keys >> (BITS - 1), jnp.uint32(0x80000000), jnp.uint32(0xFFFFFFFF))
    return lax.bitcast_convert_type(bits, jnp.float32)
