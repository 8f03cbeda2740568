"""Positions as rotations or waves."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], *, theta: float
) -> Float[Array, "B T N H"]:
    """Return x with each pair (i, i + H/2) turned by position * theta^(-2i/H) (Su et al. 2021).

    The halves convention of GPT-NeoX and Llama in transformers, not the interleaved one.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    # bfloat16 cannot represent positions above 256, so angles stay float32.
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def sinusoid(positions: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Return the waves of Vaswani et al. 2017, sines then cosines, in float32."""
    half = width // 2
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
