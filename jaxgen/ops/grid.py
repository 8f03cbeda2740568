"""The numbers that a quantised matrix can have, and rounding to the nearest of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Grid:
    """Which numbers a quantised weight can have: integers of `bits` times the scale of a group.

    group: inputs that share a scale; None: all of an output. symmetric: no zero points. scales:
    dtype in which they are exact; those of float16 are the same in the blocks of GGUF files.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True
    scales: Literal["float32", "float16"] = "float32"

    @property
    def lowest(self) -> int:
        """The lowest integer."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The highest integer."""
        return 2 ** (self.bits - 1) - 1


class Steps(NamedTuple):
    """scale [O, G] and zero point [O, G] of each group; zero is 0 of symmetric grids."""

    scale: Float[Array, "O G"]
    zero: Float[Array, "O G"]

    def by_column(self, columns: int) -> Steps:
        """Return both for each of so many columns: [O, columns]."""
        return Steps(*(jnp.repeat(x, columns // x.shape[1], 1) for x in self))


def steps(w: Float[Array, "O I"], grid: Grid) -> Steps:
    """Return the scales and zero points of a matrix [outputs, inputs].

    Symmetric: the largest magnitude of a group lies at highest + 1/2, so that the whole range is
    used (as qwix and compressed-tensors have it). Else its smallest and largest number, and 0, lie
    on the grid.
    """
    groups = w.reshape(len(w), -1, grid.group or w.shape[1])
    if grid.symmetric:
        scale = _positive(jnp.max(jnp.abs(groups), axis=-1) / (grid.highest + 0.5), grid)
        return Steps(scale, jnp.zeros_like(scale))
    low, high = jnp.minimum(groups.min(-1), 0), jnp.maximum(groups.max(-1), 0)
    scale = _positive((high - low) / (grid.highest - grid.lowest), grid)
    zero = jnp.clip(jnp.round(grid.lowest - low / scale), grid.lowest, grid.highest)
    return Steps(scale, zero)


def _positive(scale: Array, grid: Grid) -> Array:
    """Return scales as the grid has them, 1 for those of nothing but zeros."""
    scale = jnp.where(scale < jnp.sqrt(jnp.finfo(scale.dtype).tiny), 1.0, scale)
    short = scale.astype(grid.scales).astype(scale.dtype)
    # Smaller ones, and larger, would lose digits or be no number.
    is_near = jnp.abs(short - scale) < 2.0**-10 * scale
    return jnp.where(is_near, short, scale)


def snap(w: Array, scale: Array, zero: Array, grid: Grid) -> Array:
    """Return the nearest numbers on the grid; scale and zero are of w's shape."""
    integers = jnp.clip(jnp.round(w / scale + zero), grid.lowest, grid.highest)
    return (integers - zero) * scale


def round_to_nearest(w: Float[Array, "O I"], grid: Grid) -> tuple[Float[Array, "O I"], Steps]:
    """Return (the nearest numbers on the grid, its scales and zero points)."""
    grid_steps = steps(w, grid)
    return snap(w, *grid_steps.by_column(w.shape[1]), grid), grid_steps
