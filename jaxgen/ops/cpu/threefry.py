"""Threefry (Salmon et al. 2011) by the index of an element; the plain form is `jax.random`.

XLA:CPU gets a loop over whole arrays for JAX's own. Written out here, it is fused with what reads
it, and any part of an array is drawn without the rest.
"""

from __future__ import annotations

from functools import partial
from math import ceil, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32

from jaxgen.ops.cpu import enabled

IMPLEMENTATION = "key<fry>"  # the dtype of its keys, abstract ones as well
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
GROUPS = 5  # of four rounds each
MANTISSA = 23  # bits of a float32 that JAX draws at random


def is_indexable(key: Any, count: int) -> bool:
    """Return whether any of `count` draws of a key is a function of its index alone."""
    return (
        str(key.dtype) == IMPLEMENTATION
        and jax.config.values["jax_threefry_partitionable"]
        and count < 2**32
        and enabled("threefry")
    )


@partial(jax.jit, static_argnums=1, inline=True)
def gumbel(keys: UInt32[Array, "B 2"], count: int) -> Float[Array, "B count"]:
    """Return the draws of jax.random.gumbel for each key, float32; keys: their data."""
    index = jax.lax.iota(jnp.uint32, count)
    bits = jax.vmap(_bits, (0, None))(keys, index)
    # A float32 from 1 to 2 has these bits at random; least: the logarithm of 0 is none.
    one = jnp.uint32(np.float32(1).view(np.uint32))
    uniform = jax.lax.bitcast_convert_type((bits >> (32 - MANTISSA)) | one, jnp.float32) - 1
    return -jnp.log(-jnp.log(jnp.maximum(uniform, jnp.finfo(jnp.float32).tiny)))


@partial(jax.jit, static_argnums=(1, 2), inline=True)
def flat_index(
    starts: tuple[Any, ...], shape: tuple[int, ...], full_shape: tuple[int, ...]
) -> UInt32[Array, "..."]:
    """Return the flat index, in an array of shape `whole`, of each element of a part of it.

    starts: where the part begins on each axis; shape: that of the part.
    """
    flat = jnp.zeros((), jnp.uint32)
    for axis, start in enumerate(starts):
        along = jnp.asarray(start, jnp.uint32) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        flat = flat + along * jnp.uint32(prod(full_shape[axis + 1 :]))
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
