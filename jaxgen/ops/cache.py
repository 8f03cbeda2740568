"""The key/value cache: a value that goes in and comes out, and owns the notion of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.mesh import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossKeys:
    """Keys and values that all layers made, once, of an encoder's memory; segments are its own."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]
    segments: Int[Array, "B S"]


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
    cross: CrossKeys | None = None

    @property
    def capacity(self) -> int:
        """Return the slots of a row."""
        return self.k.shape[2]

    def rewind(self, length: Int[Array, "B"]) -> Cache:
        """Return the cache as it was when each row held `length` tokens."""
        return replace(self, length=length)

    def take(self, rows: Int[Array, "C"]) -> Cache:
        """Return the cache whose row i is row rows[i] of this one, as a beam search reorders."""
        cross = self.cross
        if cross is not None:
            cross = CrossKeys(cross.k[:, rows], cross.v[:, rows], cross.segments[rows])
        return Cache(self.k[:, rows], self.v[:, rows], self.length[rows], cross)


def empty(
    layers: int,
    batch: int,
    capacity: int,
    heads: int,
    width: int,
    dtype: str,
    *,
    memory: int | None = None,
) -> Cache:
    """Return a cache of `capacity` slots a row that holds nothing yet.

    memory: slots for the keys of an encoder's output, in models that read one.
    """

    def zeros(slots):
        return constrain(jnp.zeros((layers, batch, slots, heads, width), dtype), "LBSKH")

    cross = None
    if memory is not None:
        # Segment 0 is padding: until the memory is written, nothing of it can be seen.
        cross = CrossKeys(zeros(memory), zeros(memory), jnp.zeros((batch, memory), jnp.int32))
    return Cache(zeros(capacity), zeros(capacity), jnp.zeros(batch, jnp.int32), cross)


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
        return lax.dynamic_update_index_in_dim(whole, rows(_layer(whole, layer), new), layer, 0)

    return replace(cache, k=put(cache.k, k), v=put(cache.v, v))


def begin_cross(cache: Cache, segments: Int[Array, "B S"]) -> Cache:
    """Return the cache told which slots of the memory are padding, before layers write its keys."""
    assert cache.cross is not None
    return replace(cache, cross=replace(cache.cross, segments=segments))


def write_cross(
    cache: Cache,
    layer: Int[Array, ""] | int,
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
) -> Cache:
    """Return the cache with one layer's keys and values of the memory."""
    assert cache.cross is not None

    def put(whole, new):
        return lax.dynamic_update_index_in_dim(whole, new.astype(whole.dtype), layer, 0)

    cross = replace(cache.cross, k=put(cache.cross.k, k), v=put(cache.cross.v, v))
    return replace(cache, cross=cross)


def read(
    cache: Cache, layer: Int[Array, ""] | int
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Return all slots of one layer's keys and values."""
    return _layer(cache.k, layer), _layer(cache.v, layer)


def read_cross(
    cache: Cache, layer: Int[Array, ""] | int
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Return one layer's keys and values of the memory."""
    assert cache.cross is not None
    return _layer(cache.cross.k, layer), _layer(cache.cross.v, layer)


def _layer(whole, layer):
    return lax.dynamic_index_in_dim(whole, layer, keepdims=False)


def advance(cache: Cache, tokens: int) -> Cache:
    """Return the cache with every row `tokens` longer, once all layers have written."""
    return replace(cache, length=cache.length + tokens)
