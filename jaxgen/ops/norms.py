"""Normalisation over the model width, computed in float32 whatever comes in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxgen.mesh.place import platform

Norm = Callable[..., Float[Array, "... D"]]
ROW = "a row's mean or scale"  # what is kept of a row: `_frugal`


def rms_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "... D"],
    bias: Float[Array, "... D"] | None,
    *,
    epsilon: float,
) -> Float[Array, "... D"]:
    """Return x / rms(x) * scale (+ bias) (Zhang and Sennrich 2019)."""
    return _affine(_unit(x.astype(jnp.float32), epsilon), scale, bias).astype(x.dtype)


def rms_offset_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "... D"],
    bias: Float[Array, "... D"] | None,
    *,
    epsilon: float,
) -> Float[Array, "... D"]:
    """Return x / rms(x) * (1 + scale) (+ bias), as Gemma (2024) keeps its scales.

    Near 1 a bfloat16 has steps of 1/128; its offset from 1 is kept far finer.
    """
    return rms_norm(x, 1 + scale.astype(jnp.float32), bias, epsilon=epsilon)


def layer_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "... D"],
    bias: Float[Array, "... D"] | None,
    *,
    epsilon: float,
) -> Float[Array, "... D"]:
    """Return (x - mean) / std * scale (+ bias) (Ba et al. 2016)."""
    y = x.astype(jnp.float32)
    y = y - checkpoint_name(jnp.mean(y, axis=-1, keepdims=True), ROW)
    return _affine(_unit(y, epsilon), scale, bias).astype(x.dtype)


def unit_norm(x: Float[Array, "... D"], *, epsilon: float) -> Float[Array, "... D"]:
    """Return x / rms(x), with nothing learned."""
    return _unit(x.astype(jnp.float32), epsilon).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _unit(x, epsilon):
    """x / rms(x). Its derivative in closed form keeps the result and one number a row."""
    return x * _inverse(x, epsilon)


@_unit.defjvp
def _unit_jvp(epsilon, primals, tangents):
    (x,), (t,) = primals, tangents
    inverse = checkpoint_name(_inverse(x, epsilon), ROW)
    y = x * inverse
    return y, inverse * (t - y * jnp.mean(y * t, axis=-1, keepdims=True))


def _inverse(x, epsilon):
    return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def _affine(y, scale, bias):
    wide = lambda x: x.astype(jnp.float32).reshape((1,) * (y.ndim - x.ndim) + x.shape)  # noqa: E731
    y = y * wide(scale)
    return y if bias is None else y + wide(bias)


def _frugal(norm: Norm) -> Norm:
    """Return a norm that saves its input for the backward pass where that is narrower than float32.

    Otherwise it would save float32 intermediates, twice as large. The recomputation is a few
    elementwise operations; row sums are saved. On a CPU arrays are mostly float32 anyway.
    """

    @wraps(norm)
    def frugal(x, scale, bias, *, epsilon):
        form = partial(norm, epsilon=epsilon)
        if x.dtype.itemsize < 4 and platform() != "cpu":
            form = jax.checkpoint(form, policy=jax.checkpoint_policies.save_only_these_names(ROW))
        return form(x, scale, bias)

    return frugal


_ALL = {"rms": rms_norm, "rms_offset": rms_offset_norm, "layer": layer_norm}
NORMS = {name: _frugal(norm) for name, norm in _ALL.items()}
