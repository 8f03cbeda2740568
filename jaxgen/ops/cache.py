"""The key/value cache: a value that goes in and comes out, and owns the notion of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of all layers; the token at position p of a row lies in slot p of that row.

    Slot = position makes a row's numbers independent of its neighbours' lengths: nothing is
    shifted by padding. Slots at `length` and beyond hold rubbish that no query may see.
    """

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    length: Int[Array, "B"]

    @property
    def capacity(self) -> int:
        """Return the slots of a row."""
        return self.k.shape[2]

    def rewind(self, length: Int[Array, "B"]) -> Cache:
        """Return the cache as it was when each row held `length` tokens."""
        return replace(self, length=length)


def empty(layers: int, batch: int, capacity: int, heads: int, width: int, dtype: str) -> Cache:
    """Return a cache of `capacity` slots a row that holds nothing yet."""
    shape = (layers, batch, capacity, heads, width)
    return Cache(
        k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype), length=jnp.zeros(batch, jnp.int32)
    )


def write(
    cache: Cache,
    layer: Int[Array, ""] | int,
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
) -> Cache:
    """Return the cache with T new tokens of one layer written after each row's `length`.

    The caller sees to it that length + T fits the capacity: a write past the end would be
    clamped onto the last slots without a word, as all dynamic updates in JAX are.
    """

    def rows(slots, new):
        place = jax.vmap(lambda row, tokens, at: lax.dynamic_update_slice(row, tokens, (at, 0, 0)))
        return place(slots, new.astype(slots.dtype), cache.length)

    def put(whole, new):
        slots = lax.dynamic_index_in_dim(whole, layer, keepdims=False)
        return lax.dynamic_update_index_in_dim(whole, rows(slots, new), layer, 0)

    return replace(cache, k=put(cache.k, k), v=put(cache.v, v))


def read(
    cache: Cache, layer: Int[Array, ""] | int
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Return all slots of one layer's keys and values."""
    return (
        lax.dynamic_index_in_dim(cache.k, layer, keepdims=False),
        lax.dynamic_index_in_dim(cache.v, layer, keepdims=False),
    )


def advance(cache: Cache, tokens: int) -> Cache:
    """Return the cache with every row `tokens` longer, once all layers have written."""
    return replace(cache, length=cache.length + tokens)
