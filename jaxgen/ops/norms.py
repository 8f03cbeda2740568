"""Normalisation over the model width, computed in float32 whatever comes in."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | None,
    *,
    epsilon: float,
) -> Float[Array, "... D"]:
    """Return x / rms(x) * scale (+ bias) (Zhang and Sennrich 2019)."""
    return _affine(_unit(x.astype(jnp.float32), epsilon), scale, bias).astype(x.dtype)


def rms_offset_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | None,
    *,
    epsilon: float,
) -> Float[Array, "... D"]:
    """Return x / rms(x) * (1 + scale) (+ bias), as Gemma (2024) keeps its scales.

    Near 1 a bfloat16 has steps of 1/128; its offset from 1 is kept far finer.
    """
    return rms_norm(x, 1 + scale.astype(jnp.float32), bias, epsilon=epsilon)


def layer_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | None,
    *,
    epsilon: float,
) -> Float[Array, "... D"]:
    """Return (x - mean) / std * scale (+ bias) (Ba et al. 2016)."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return _affine(_unit(y, epsilon), scale, bias).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _unit(x, epsilon):
    """x / rms(x). Its derivative in closed form keeps the result and one number a row."""
    return x * _inverse(x, epsilon)


@_unit.defjvp
def _unit_jvp(epsilon, primals, tangents):
    (x,), (t,) = primals, tangents
    inverse = _inverse(x, epsilon)
    y = x * inverse
    return y, inverse * (t - y * jnp.mean(y * t, axis=-1, keepdims=True))


def _inverse(x, epsilon):
    return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def _affine(y, scale, bias):
    y = y * scale.astype(jnp.float32)
    return y if bias is None else y + bias.astype(jnp.float32)


NORMS = {"rms": rms_norm, "rms_offset": rms_offset_norm, "layer": layer_norm}
