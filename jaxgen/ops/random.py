"""The masks of dropout and the noise of sampling: the draws of `jax.random`, bit for bit."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxgen.ops import cpu
from jaxgen.ops.cpu import threefry
from jaxgen.ops.cpu.argmax import argmax
from jaxgen.ops.cpu.noinline import noinline


class DropoutRng(NamedTuple):
    """The source of a dropout mask, which keeps each element with probability `keep`.

    first: index of an array's first row among the `rows` of the global batch.
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
    full_shape = (rng.rows, *shape[1:])
    if is_indexable(rng, full_shape):
        starts = (rng.first, *(0 for _ in shape[1:]))
        return threefry.keep_at(
            jax.random.key_data(rng.key), rng.keep, threefry.flat_index(starts, shape, full_shape)
        )
    # A float32 whatever jax_enable_x64 says: 64 bits would draw other numbers.
    mask = jax.random.bernoulli(rng.key, jnp.float32(rng.keep), full_shape)
    if full_shape == shape:
        return mask
    return jax.lax.dynamic_slice_in_dim(mask, rng.first, shape[0], axis=0)


def is_indexable(rng: DropoutRng, shape: tuple[int, ...]) -> bool:
    """Return whether `keep_at` can draw elements of an array of shape `whole` one by one."""
    return threefry.is_indexable(rng.key, prod(shape))


def gumbel(keys: Key[Array, "B"], count: int) -> Float[Array, "B count"]:
    """Return the draws of jax.random.gumbel for each key, float32."""
    if not threefry.is_indexable(keys, count) or jax.config.values["jax_high_dynamic_range_gumbel"]:
        return jax.vmap(lambda key: jax.random.gumbel(key, (count,), jnp.float32))(keys)
    return threefry.gumbel(jax.random.key_data(keys), count)


def categorical(keys: Key[Array, "B"], logits: Float[Array, "B V"]) -> Int[Array, "B"]:
    """Return the draw of jax.random.categorical for each row of logits and its key."""
    # XLA on a CPU would fuse the noise into the loop of argmax, one number at a time.
    form = _perturb_noinline if cpu.enabled("threefry") else _perturb
    return argmax(form(keys, logits))


def _perturb(keys: Key[Array, "B"], logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    return gumbel(keys, logits.shape[-1]) + logits


_perturb_noinline = noinline(_perturb)
