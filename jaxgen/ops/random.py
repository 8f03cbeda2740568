"""jax.random, one element at a time: the masks of dropout and the noise of sampling.

JAX draws with threefry (Salmon et al. 2011), a function of the key and an element's flat index. On
a CPU it lowers that to a loop that passes over whole arrays; written out here, it is fused with
what uses it, and any part of an array can be drawn without the rest.
"""

from __future__ import annotations

from functools import partial
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxgen.mesh import place
from jaxgen.ops.largest import argmax
from jaxgen.ops.noinline import noinline

THREEFRY = "key<fry>"  # the type of its keys, abstract ones as well
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
GROUPS = 5  # of four rounds each
MANTISSA = 23  # bits of a float32 that JAX draws at random


class DropoutRng(NamedTuple):
    """The source of a dropout mask, which keeps each element with probability `keep`.

    first: the number of an array's first row among the `rows` of the whole batch, of which every
    device may hold a part.
    """

    key: Any  # PRNGKeyArray
    keep: float
    first: Any  # Int[Array, ""] | int
    rows: int


def dropout(x: Float[Array, "B ..."], rng: DropoutRng) -> Float[Array, "B ..."]:
    """Return x with the dropped elements 0 and the others divided by `keep`."""
    return jnp.where(keep_mask(rng, x.shape), x / rng.keep, jnp.zeros_like(x))


def keep_mask(rng: DropoutRng, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Return True where dropout keeps an element of an array of this shape [B, ...]."""
    whole = (rng.rows, *shape[1:])
    if is_indexable(rng, whole):
        starts = (rng.first, *(0 for _ in shape[1:]))
        return keep_at(jax.random.key_data(rng.key), rng.keep, flat_index(starts, shape, whole))
    # A float32 whatever jax_enable_x64 says: 64 bits would draw other numbers.
    mask = jax.random.bernoulli(rng.key, jnp.float32(rng.keep), whole)
    if whole == shape:
        return mask
    return jax.lax.dynamic_slice_in_dim(mask, rng.first, shape[0], axis=0)


def is_indexable(rng: DropoutRng, whole: tuple[int, ...]) -> bool:
    """Return whether `keep_at` can draw elements of an array of shape `whole` one by one."""
    return _is_indexable(rng.key, prod(whole))


def _is_indexable(key: Any, count: int) -> bool:
    return (
        str(key.dtype) == THREEFRY
        and jax.config.values["jax_threefry_partitionable"]
        and count < 2**32
        and place.platform() == "cpu"
    )


def gumbel(keys: Key[Array, "B"], count: int) -> Float[Array, "B count"]:
    """Return the draws of jax.random.gumbel for each key, float32."""
    if not _is_indexable(keys, count) or jax.config.values["jax_high_dynamic_range_gumbel"]:
        return jax.vmap(lambda key: jax.random.gumbel(key, (count,), jnp.float32))(keys)
    return _gumbel(jax.random.key_data(keys), count)


def categorical(keys: Key[Array, "B"], logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Return the draw of jax.random.categorical for each row of logits and its key."""
    if place.platform() != "cpu":
        return argmax(gumbel(keys, logits.shape[-1]) + logits)
    # XLA on a CPU would fuse the noise into the loop of argmax, one number at a time.
    return argmax(_perturbed(keys, logits))


@noinline
def _perturbed(keys: Key[Array, "B"], logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    return gumbel(keys, logits.shape[-1]) + logits


@partial(jax.jit, static_argnums=1, inline=True)
def _gumbel(keys: UInt32[Array, "B 2"], count: int) -> Float[Array, "B count"]:
    places = jax.lax.iota(jnp.uint32, count)
    bits = jax.vmap(_bits, (0, None))(keys, places)
    # A float32 from 1 to 2 has these bits at random; least: the logarithm of 0 is none.
    one = jnp.uint32(np.float32(1).view(np.uint32))
    uniform = jax.lax.bitcast_convert_type((bits >> (32 - MANTISSA)) | one, jnp.float32) - 1
    return -jnp.log(-jnp.log(jnp.maximum(uniform, jnp.finfo(jnp.float32).tiny)))


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def flat_index(
    starts: tuple[Any, ...], shape: tuple[int, ...], whole: tuple[int, ...]
) -> UInt32[Array, "..."]:
    """Return the flat index, in an array of shape `whole`, of each element of a part of it.

    starts: where the part begins on each axis; shape: that of the part.
    """
    flat = jnp.zeros((), jnp.uint32)
    for axis, start in enumerate(starts):
        along = jnp.asarray(start, jnp.uint32) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        flat = flat + along * jnp.uint32(prod(whole[axis + 1 :]))
    return flat


# Compiled as one even where the caller is not: operation by operation it would be 100 programs.
@partial(jax.jit, static_argnums=1, inline=True)
def keep_at(
    key: UInt32[Array, "2"], keep: float, index: UInt32[Array, "..."]
) -> Bool[Array, "..."]:
    """Return whether dropout keeps the elements with these flat indices; key: its data."""
    # Uniform draws are multiples of 2^-23; JAX compares them with a float32.
    limit = ceil(float(np.float32(keep)) * 2**MANTISSA)
    return (_bits(key, index) >> (32 - MANTISSA)) < jnp.uint32(limit)


def _bits(key: UInt32[Array, "2"], index: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    left, right = jnp.broadcast_to(keys[0], index.shape), index + keys[1]
    for group in range(GROUPS):
        for turn in ROTATIONS[group % 2]:
            left = left + right
            right = left ^ ((right << turn) | (right >> (32 - turn)))
        left = left + keys[(group + 1) % 3]
        right = right + (keys[(group + 2) % 3] + jnp.uint32(group + 1))
    return left ^ right
