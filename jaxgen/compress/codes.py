"""Numbers on a grid as the leaves of a model."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.ops.grid import Grid, Steps
from jaxgen.ops.input_scaled import InputScaled
from jaxgen.ops.int4 import Int4
from jaxgen.ops.int4_groups import ZERO, Int4Groups
from jaxgen.ops.int8 import Int8, Int8Activations
from jaxgen.ops.int8_blocks import Int8Blocks


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
