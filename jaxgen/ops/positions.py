"""Positions as rotations or waves."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.config_groups import Rope, RopeScaling
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
    if scaling.low == scaling.high:
        return (turns >= scaling.low).astype(plain.dtype), 1.0
    return np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1), 1.0


def _yarn(plain, width, theta, scaling):
    def pair(turns):
        waves = scaling.original_context / (turns * 2 * math.pi)
        return width * math.log(waves) / (2 * math.log(theta))

    first, last = pair(scaling.high), pair(scaling.low)
    if scaling.bounds == "whole":
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    ramp = (np.arange(len(plain)) - first) / (last - first or 0.001)
    gain = scaling.attention
    if gain is None:
        gain = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return 1 - np.clip(ramp, 0, 1), gain


def _longrope(plain, width, theta, scaling):
    return np.ones_like(plain), 1.0 if scaling.attention is None else scaling.attention


# Weight of the unscaled frequency of each pair, from 0 (fully interpolated) to 1.
_WEIGHTS = {
    "none": _none,
    "linear": _linear,
    "dynamic": _none,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def rotate(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], rope: Rope
) -> Float[Array, "B T N H"]:
    """Return x with each pair of `rope` rotated by position * its frequency; the rest as it is."""
    width = rope.width(x.shape[-1])
    frequency, gain = frequencies(width, theta=rope.theta, scaling=rope.scaling)
    frequency[rope.turning(x.shape[-1]) :] = 0
    # bfloat16 cannot represent positions above 256, so angles stay float32.
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    if stretch := _BY_LENGTH.get(rope.scaling.kind):
        length = positions.max(axis=1) + 1
        angle = angle * stretch(length, width, rope.scaling)[:, None, None]
    sin, cos = jnp.sin(angle) * gain, jnp.cos(angle) * gain
    sin = -sin if rope.pairs == "halves_back" else sin
    turning, rest = x[..., :width].astype(jnp.float32), x[..., width:]
    if rope.pairs != "neighbours":
        left, right = turning[..., : width // 2], turning[..., width // 2 :]
        turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    else:
        left, right = turning[..., ::2], turning[..., 1::2]
        pairs = jnp.stack([left * cos - right * sin, right * cos + left * sin], axis=-1)
        turned = pairs.reshape(turning.shape)
    turned = turned.astype(x.dtype)
    return turned if width == x.shape[-1] else jnp.concatenate([turned, rest], axis=-1)


# Factors of the frequencies in rows of certain lengths. As in transformers, keys that a cache holds
# stay as they are when the text grows.
def _grown_base(
    length: Int[Array, "B"], width: int, scaling: RopeScaling
) -> Float[Array, "B half"]:
    """Return 1 up to the original context; after it the base grows as the text does."""
    before = scaling.original_context
    assert before is not None
    length = jnp.maximum(length, before).astype(jnp.float32)
    growth = scaling.factor * length / before - (scaling.factor - 1)
    pairs = np.arange(0, width, 2, dtype=np.float32) / max(width - 2, 1)
    return growth[:, None] ** -pairs[None]


def _short_or_long(
    length: Int[Array, "B"], width: int, scaling: RopeScaling
) -> Float[Array, "B half"]:
    assert scaling.original_context is not None
    short, long = (1 / np.asarray(x, np.float32)[None] for x in (scaling.short, scaling.long))
    return jnp.where(length[:, None] > scaling.original_context, long, short)


_BY_LENGTH = {"dynamic": _grown_base, "longrope": _short_or_long}


def slopes(heads: int) -> Float[np.ndarray, "N"]:
    """Return the slope of each head of ALiBi (Press et al. 2022), as its authors' code has them."""
    power = 2 ** math.floor(math.log2(heads))
    first = 2.0 ** (-8 / power * np.arange(1, power + 1))
    more = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([first, more]).astype(np.float32)


def sinusoid(
    positions: Int[Array, "B T"], width: int, *, last: bool = False
) -> Float[Array, "B T D"]:
    """Return the waves of Vaswani et al. 2017, sines then cosines, in float32.

    last: the longest wave is 10000 positions per radian, as in the authors' own code
    (tensor2tensor); else it is the one before it, as in their paper.
    """
    half = width // 2
    steps = max(half - 1, 1) if last else half
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / steps)
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


def log_buckets(distance: Int[Array, "..."], *, number: int, farthest: int) -> Int[Array, "..."]:
    """Return the bucket of each distance, with its sign (He et al. 2021, DeBERTa-v2).

    Distances up to number / 2 have a bucket each; the others grow as logarithms, so that
    `farthest` - 1 has the last of `number`, and what is beyond others after that.
    """
    exact = number // 2
    far = jnp.maximum(jnp.abs(distance), exact).astype(jnp.float32)
    # Borders are where the reference rounds to, in float32.
    share = jnp.log(far / exact) / jnp.log(jnp.float32((farthest - 1) / exact))
    coarse = jnp.ceil(share * (exact - 1)).astype(jnp.int32) + exact
    return jnp.where(jnp.abs(distance) <= exact, distance, coarse * jnp.sign(distance))
