"""A matrix as small integers with a scale for each group of inputs, rounded to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.ops.input_scaled import InputScaled
from jaxgen.ops.int4 import Int4
from jaxgen.ops.int4_groups import ZERO, Int4Groups
from jaxgen.ops.int8 import Int8, Int8Activations
from jaxgen.ops.int8_blocks import Int8Blocks


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


def integers(numbers: Float[Array, "O I"], grid_steps: Steps) -> Int[Array, "O I"]:
    """Return the integers less their zero points of numbers that lie on a grid: [O, I] int8."""
    return jnp.round(numbers / grid_steps.by_column(numbers.shape[1]).scale).astype(jnp.int8)


def leaf(
    numbers: Float[Array, "O I"],
    grid_steps: Steps,
    grid: Grid,
    outer: tuple[int, ...],
    num_contracted: int,
    *,
    activations: str = "plain",
) -> Any:
    """Return a weight of the model with these numbers, packed as the grid allows.

    outer: its output axes. activations: "int8" rounds inputs as well; of int8 by channel only.
    """
    values = integers(numbers, grid_steps)
    scale = grid_steps.scale.reshape(*outer, -1)
    if grid.bits == 4:
        zero = None
        if not grid.symmetric:
            zero = (grid_steps.zero + ZERO).astype(jnp.uint8).reshape(scale.shape)
        return Int4Groups.of_codes(values, scale, zero, num_contracted)
    if grid.group is not None:
        return Int8Blocks(values, scale, num_contracted)
    kind = Int8Activations if activations == "int8" else Int8
    return kind(values, scale[..., 0], num_contracted)


def nf4_leaf(w: Float[Array, "O I"], outer: tuple[int, ...], num_contracted: int) -> Int4:
    """Return a weight as NF4, rounded to nearest: blocks of 64 inputs, scales of 8 bits."""
    matrix = Int4.of(w.T, 1)
    return Int4(matrix.values, matrix.scale, matrix.largest.reshape(outer), num_contracted)


def with_factor(weight: Any, factor: Array | None, inner: tuple[int, ...]) -> Any:
    """Return a weight whose inputs are divided by what its columns were multiplied with."""
    return weight if factor is None else InputScaled(weight, (1 / factor).reshape(inner))
