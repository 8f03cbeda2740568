"""Slots: how the keys and values of layers are stored, written and read.

Stores: plain keeps the numbers as they are; int8 keeps a byte and, for each head and position, one
scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxgen.export import Size, serializable
from jaxgen.mesh import constrain, shards
from jaxgen.mesh.place import platform
from jaxgen.ops.unrolled import UnrolledLayers

Store = Literal["plain", "int8"]
Counts = int | Sequence[int]  # of layers: in one array, or in that of each step
LEVELS = 127  # int8 is used symmetrically


@serializable
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Keys and values of some layers; with int8, they are times the scales.

    The slots of a head lie together, as products read them: a step copies nothing.
    """

    k: Any  # Num[Array, "L B K S H"] | UnrolledLayers
    v: Any  # Num[Array, "L B K S H"] | UnrolledLayers
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


def zeros(sizes: Sizes, layers: Counts, slots: Size, dtype: str, *, scale: bool = False) -> Any:
    """Return zeros for so many slots of a row, or for their scales."""
    if not isinstance(layers, int):
        return UnrolledLayers(tuple(zeros(sizes, n, slots, dtype, scale=scale) for n in layers))
    shape = (layers, sizes.batch, sizes.heads, slots, sizes.width)
    letters = "LBKS" if scale else "LBKSH"
    return constrain(jnp.zeros(shape[: len(letters)], dtype), letters)


def empty(sizes: Sizes, layers: Counts, slots: Size, store: Store) -> Slots | None:
    """Return Slots that hold nothing yet; None without layers."""
    if not (layers if isinstance(layers, int) else sum(layers)):
        return None
    if store == "plain":
        k, v = (zeros(sizes, layers, slots, sizes.dtype) for _ in "kv")
        return Slots(k, v, None, None)
    k, v = (zeros(sizes, layers, slots, "int8") for _ in "kv")
    return Slots(k, v, *(zeros(sizes, layers, slots, "float32", scale=True) for _ in "kv"))


def _coded(slots: Slots, k: Array, v: Array) -> list[tuple[str, Array]]:
    """New keys and values as they are stored, by the field they belong in."""
    new = (("k", k), ("v", v))
    if slots.k_scale is None:
        return [(name, x.astype(getattr(slots, name).dtype)) for name, x in new]
    coded = []
    for name, x in new:
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), axis=-1) / LEVELS
        level = jnp.round(x / jnp.where(scale > 0, scale, 1.0)[..., None])
        coded += [(name, level.astype(jnp.int8)), (f"{name}_scale", scale)]
    return coded


def _plain(x: Array, scale: Array | None, dtype) -> Array:
    return x if scale is None else (x.astype(jnp.float32) * scale[..., None]).astype(dtype)


def kept(slots: Slots, k: Array, v: Array) -> tuple[Array, Array]:
    """Return new keys and values as they will be read again."""
    coded = dict(_coded(slots, k, v))
    return (
        _plain(coded["k"], coded.get("k_scale"), k.dtype),
        _plain(coded["v"], coded.get("v_scale"), v.dtype),
    )


def written(slots: Slots, layer, k: Array, v: Array, length: Array) -> Slots:
    """Return slots with T new tokens of one layer after each row's `length`."""
    rows, heads = jnp.arange(k.shape[0])[:, None, None], jnp.arange(k.shape[2])[None, None]
    at = length[:, None, None] + jnp.arange(k.shape[1])[None, :, None]
    if platform() == "tpu" or shards("LBKSH") > 1:
        # One write for all heads. On a CPU that of one row would be an update of a slice, which
        # XLA does twice, once for what reads it, each time in a copy of all slots.
        rows, heads, at = rows[..., 0], slice(None), at[..., 0]
    changed = {
        name: getattr(slots, name).at[layer, rows, heads, at].set(new, mode="drop")
        for name, new in _coded(slots, k, v)
    }
    return replace(slots, **changed)


def turned(slots: Slots, layer, k: Array, v: Array, length: Array, real: Array) -> Slots:
    """Return slots with the last of the `real` new tokens of one layer, in place of the oldest."""
    tokens, size = k.shape[1], slots.count
    place = jnp.arange(tokens)[None]
    lasting = (place < real[:, None]) & (place >= real[:, None] - size)
    at = jnp.where(lasting, (length[:, None] + place) % size, size)
    rows = jnp.arange(k.shape[0])[:, None]
    changed = {}
    for name, new in _coded(slots, k, v):
        whole = getattr(slots, name)
        one = layer_of(whole, layer).at[rows, :, at].set(new, mode="drop")
        changed[name] = put(whole, one, layer)
    return replace(slots, **changed)


def put(whole: Any, one: Array, layer) -> Array:
    """Return the array of all layers with that of one in its place."""
    return lax.dynamic_update_index_in_dim(whole, one, layer, 0)


def read(slots: Slots, layer, dtype) -> tuple[Array, Array]:
    """Return all slots of one layer's keys and values, [B, S, K, H]."""
    pairs = ((slots.k, slots.k_scale), (slots.v, slots.v_scale))
    k, v = (
        _plain(layer_of(x, layer), None if scale is None else layer_of(scale, layer), dtype)
        for x, scale in pairs
    )
    return k.swapaxes(1, 2), v.swapaxes(1, 2)


def layer_of(whole: Any, layer) -> Array:
    """Return the array of one layer."""
    return lax.dynamic_index_in_dim(whole, layer, keepdims=False)
