"""A weight whose inputs are multiplied by factors first, as AWQ and SmoothQuant leave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.ops.contract import contract
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class InputScaled:
    """A quantised weight that was multiplied by 1 / factor along its inputs before rounding."""

    weight: Any  # another leaf
    factor: Any  # [contracted axes] float32

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.weight.out_axes

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x * factor, weight)."""
        scaled = x.astype(dtype) * self.factor.astype(dtype)
        return contract(equation, jnp.asarray(scaled), self.weight, dtype=dtype)
