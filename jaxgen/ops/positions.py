"""Positions as rotations or waves."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.config import RopeScaling
from jaxgen.ops.masks import Direction


def frequencies(
    width: int, *, theta: float, scaling: RopeScaling
) -> tuple[Float[np.ndarray, "half"], float]:
    """Return (radians per position of each pair, factor of the rotated values) as in transformers.

    theta^(-2i/H) (Su et al. 2021), stretched as `scaling` says.
    """
    plain = theta ** (-np.arange(0, width, 2) / width)
    weight, gain = _WEIGHTS[scaling.kind](plain, width, theta, scaling)
    mixed = plain * weight + plain / scaling.factor * (1 - weight)
    return mixed.astype(np.float32), gain


def _linear(plain, width, theta, scaling):
    return np.zeros_like(plain), 1.0


def _none(plain, width, theta, scaling):
    return np.ones_like(plain), 1.0


def _llama3(plain, width, theta, scaling):
    turns = scaling.original_context * plain / (2 * math.pi)
    return np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1), 1.0


def _yarn(plain, width, theta, scaling):
    def pair(turns):
        waves = scaling.original_context / (turns * 2 * math.pi)
        return width * math.log(waves) / (2 * math.log(theta))

    first = max(math.floor(pair(scaling.high)), 0)
    last = min(math.ceil(pair(scaling.low)), width - 1)
    ramp = (np.arange(len(plain)) - first) / (last - first or 0.001)
    gain = scaling.attention
    if gain is None:
        gain = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return 1 - np.clip(ramp, 0, 1), gain


# Weight of the unscaled frequency of each pair, from 0 (fully interpolated) to 1.
_WEIGHTS = {"none": _none, "linear": _linear, "dynamic": _none, "llama3": _llama3, "yarn": _yarn}


def rotate(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    *,
    theta: float,
    scaling: RopeScaling,
) -> Float[Array, "B T N H"]:
    """Return x with each pair (i, i + H/2) rotated by position * its frequency.

    The halves convention of GPT-NeoX and Llama in transformers, not the interleaved one.
    """
    half = x.shape[-1] // 2
    frequency, gain = frequencies(x.shape[-1], theta=theta, scaling=scaling)
    # bfloat16 cannot represent positions above 256, so angles stay float32.
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    if scaling.kind == "dynamic":
        angle = angle * _stretched(positions, x.shape[-1], scaling)[:, None, None]
    sin, cos = jnp.sin(angle) * gain, jnp.cos(angle) * gain
    left, right = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def _stretched(
    positions: Int[Array, "B T"], width: int, scaling: RopeScaling
) -> Float[Array, "B half"]:
    """Return the factor of each frequency in rows of these lengths, 1 up to the original context.

    The base grows as the text does. As in transformers, keys that a cache holds stay as they are.
    """
    before = scaling.original_context
    assert before is not None
    length = jnp.maximum(positions.max(axis=1) + 1, before).astype(jnp.float32)
    growth = scaling.factor * length / before - (scaling.factor - 1)
    pairs = np.arange(0, width, 2, dtype=np.float32) / max(width - 2, 1)
    return growth[:, None] ** -pairs[None]


def sinusoid(positions: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Return the waves of Vaswani et al. 2017, sines then cosines, in float32."""
    half = width // 2
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency[None, None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def buckets(
    distance: Int[Array, "..."], *, number: int, farthest: int, direction: Direction
) -> Int[Array, "..."]:
    """Return the bucket of each distance key - query, from 0 to number - 1 (Raffel et al. 2020).

    Half of the buckets (with direction="both": of those of each side) hold one distance each; the
    others grow as logarithms up to `farthest`, where the last one takes all that is beyond.
    """
    if direction == "both":
        number //= 2
        side = jnp.where(distance > 0, number, 0)
        distance = jnp.abs(distance)
    else:
        side = 0
        distance = jnp.maximum(-distance, 0)
    exact = number // 2
    # The reference takes these logarithms in float32, and its borders are where it rounds to.
    share = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    coarse = exact + (share / math.log(farthest / exact) * (number - exact)).astype(jnp.int32)
    return side + jnp.where(distance < exact, distance, jnp.minimum(coarse, number - 1))
