"""The buffers of the key/value cache: how keys and values are stored, written and read.

Stores: "plain" keeps the compute dtype; "int8" keeps a byte a number and, for each head and
position, one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxgen.export import Size
from jaxgen.mesh import constrain, shards
from jaxgen.mesh.place import platform
from jaxgen.ops.unrolled import UnrolledLayers
from jaxgen.pytree import register_dataclass

Store = Literal["plain", "int8"]
Counts = int | Sequence[int]  # of layers: in one array, or in that of each step
LEVELS = 127  # int8 is used symmetrically


# The name is that of files written before.
@partial(register_dataclass, serialized_name="jaxgen.ops.slots.Slots")
@dataclass(frozen=True)
class KVBuffer:
    """Keys and values of some layers; of int8 ones the numbers are levels times the scales.

    Of latent attention the keys are the latents, and the values the rotated keys beside them.

    The slots of a head are contiguous, as attention reads them, so a step copies nothing.
    """

    k: Any  # Num[Array, "L B K S H"] | UnrolledLayers
    v: Any  # Num[Array, "L B K S W"] | UnrolledLayers
    k_scale: Any  # Float[Array, "L B K S"] | UnrolledLayers | None
    v_scale: Any  # Float[Array, "L B K S"] | UnrolledLayers | None

    @property
    def count(self) -> Size:
        """Return the slots of a row."""
        return jax.tree.leaves(self.k)[0].shape[3]


class Sizes(NamedTuple):
    """What decides the shapes of a cache."""

    batch: Size
    heads: int
    width: int
    dtype: str
    value_width: int | None = None  # None: as width


def zeros(
    sizes: Sizes, layers: Counts, slots: Size, dtype: str, *, scale: bool = False
) -> tuple[Any, Any]:
    """Return zeros for the keys and values of `slots` slots of each row, or for their scales."""
    letters = "LBKS" if scale else "LBKSH"

    def of(width: int, layers: Counts) -> Any:
        if not isinstance(layers, int):
            return UnrolledLayers(tuple(of(width, n) for n in layers))
        shape = (layers, sizes.batch, sizes.heads, slots, width)
        return constrain(jnp.zeros(shape[: len(letters)], dtype), letters)

    return of(sizes.width, layers), of(sizes.value_width or sizes.width, layers)


def empty(sizes: Sizes, layers: Counts, slots: Size, store: Store) -> KVBuffer | None:
    """Return an empty buffer; None without layers."""
    if not (layers if isinstance(layers, int) else sum(layers)):
        return None
    if store == "plain":
        return KVBuffer(*zeros(sizes, layers, slots, sizes.dtype), None, None)
    scales = zeros(sizes, layers, slots, "float32", scale=True)
    return KVBuffer(*zeros(sizes, layers, slots, "int8"), *scales)


def _encode(buffer: KVBuffer, k: Array, v: Array) -> list[tuple[str, Array]]:
    """Return pairs of (field, array to store in it) of new keys and values."""
    new = (("k", k), ("v", v))
    if buffer.k_scale is None:
        return [(name, x.astype(getattr(buffer, name).dtype)) for name, x in new]
    fields = []
    for name, x in new:
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=-1) / LEVELS
        level = jnp.round(x / jnp.where(scale > 0, scale, 1.0)[..., None])
        fields += [(name, level.astype(jnp.int8)), (f"{name}_scale", scale)]
    return fields


def _decode(x: Array, scale: Array | None, dtype) -> Array:
    return x if scale is None else (x.astype(jnp.float32) * scale[..., None]).astype(dtype)


def round_trip(buffer: KVBuffer, k: Array, v: Array) -> tuple[Array, Array]:
    """Return new keys and values as `read` will return them, so with the rounding of int8."""
    stored = dict(_encode(buffer, k, v))
    return (
        _decode(stored["k"], stored.get("k_scale"), k.dtype),
        _decode(stored["v"], stored.get("v_scale"), v.dtype),
    )


def write(buffer: KVBuffer, layer, k: Array, v: Array, length: Array) -> KVBuffer:
    """Return the buffer with T new tokens of one layer in the slots after each row's `length`."""
    rows, heads = jnp.arange(k.shape[0])[:, None, None], jnp.arange(k.shape[2])[None, None]
    at = length[:, None, None] + jnp.arange(k.shape[1])[None, :, None]
    if platform() == "tpu" or shards("LBKSH") > 1:
        # One write for all heads. On a CPU that of one row would be an update of a slice, which
        # XLA does twice, once for what reads it, each time in a copy of all slots.
        rows, heads, at = rows[..., 0], slice(None), at[..., 0]
    changed = {
        name: getattr(buffer, name).at[layer, rows, heads, at].set(new, mode="drop")
        for name, new in _encode(buffer, k, v)
    }
    return replace(buffer, **changed)


def write_ring(
    buffer: KVBuffer, layer, k: Array, v: Array, length: Array, num_valid: Array
) -> KVBuffer:
    """Return the buffer with new tokens of one layer, position p in slot p mod size.

    Of the T tokens of a row the first `num_valid` are written, or the last of them that fit.
    """
    tokens, size = k.shape[1], buffer.count
    offset = jnp.arange(tokens)[None]
    keep = (offset < num_valid[:, None]) & (offset >= num_valid[:, None] - size)
    at = jnp.where(keep, (length[:, None] + offset) % size, size)
    rows = jnp.arange(k.shape[0])[:, None]
    changed = {}
    for name, new in _encode(buffer, k, v):
        stacked = getattr(buffer, name)
        one = layer_of(stacked, layer).at[rows, :, at].set(new, mode="drop")
        changed[name] = put_layer(stacked, one, layer)
    return replace(buffer, **changed)


def put_layer(stacked: Any, one: Array, layer) -> Array:
    """Return the stacked array of all layers with one layer replaced."""
    return lax.dynamic_update_index_in_dim(stacked, one, layer, 0)


def read(buffer: KVBuffer, layer, dtype) -> tuple[Array, Array]:
    """Return all slots of one layer's keys and values, [B, S, K, H]."""
    pairs = ((buffer.k, buffer.k_scale), (buffer.v, buffer.v_scale))
    k, v = (
        _decode(layer_of(x, layer), None if scale is None else layer_of(scale, layer), dtype)
        for x, scale in pairs
    )
    return k.swapaxes(1, 2), v.swapaxes(1, 2)


def layer_of(stacked: Any, layer) -> Array:
    """Return the array of one layer."""
    return lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
