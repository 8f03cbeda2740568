"""Factors of input channels that make a matrix easier to round: AWQ and SmoothQuant."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.ops.grid import Grid, round_to_nearest

LEAST = 1e-4  # share of the largest channel's mean magnitude that a small one counts as
RATIOS = 20  # exponents that are tried, from 0 (no scaling) to 1


@partial(jax.jit, static_argnames="grid")
def awq(w: Float[Array, "O I"], size: Float[Array, "I"], grid: Grid) -> Float[Array, "I"]:
    """Return the factors of a matrix's columns by which rounding harms its outputs least.

    size: mean magnitude of each input, in any unit. They are its powers, of which the best of 20
    is taken by the error of the weight weighted with it (Lin et al. 2024, as in qwix).
    """
    unit = jnp.clip(size / (jnp.max(size) + 1e-8), min=LEAST)

    def attempt(ratio: Array) -> tuple[Array, Array]:
        factor = jnp.clip(unit**ratio, min=LEAST)
        factor = factor / jnp.sqrt(jnp.maximum(factor.max() * factor.min(), 1e-8))
        numbers, _ = round_to_nearest(w * factor, grid)
        return jnp.mean(jnp.square((w - numbers / factor) * size)), factor

    losses, factors = jax.lax.map(attempt, jnp.linspace(0.0, 1.0, RATIOS))
    return factors[jnp.argmin(losses)]


@partial(jax.jit, static_argnames="strength")
def smooth(w: Float[Array, "O I"], most: Float[Array, "I"], strength: float) -> Float[Array, "I"]:
    """Return the factors that move the range of inputs into the weights by `strength` in [0, 1].

    most: largest magnitude of each input (Xiao et al. 2023).
    """
    weights = jnp.maximum(jnp.max(jnp.abs(w), axis=0), 1e-5)
    return jnp.clip(jnp.maximum(most, 1e-5) ** strength / weights ** (1 - strength), min=1e-5)
