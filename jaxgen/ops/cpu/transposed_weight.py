"""Weights with their output axes first; the plain form of a leaf is the array itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.mesh import place
from jaxgen.ops.contract import contract
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class TransposedWeight:
    """A weight stored with its output axes first, which a CPU reads faster for a few rows.

    num_contracted: how many axes, now the last, are summed over.
    """

    weight: Any  # [output axes, contracted axes]
    num_contracted: int = field(metadata={"static": True})

    @classmethod
    def of(cls, weight: Any, num_contracted: int) -> TransposedWeight:
        """Return a weight whose first `num_contracted` axes are summed over; of numpy's a view."""
        order = (*range(num_contracted, weight.ndim), *range(num_contracted))
        transpose = np.transpose if isinstance(weight, np.ndarray) else jnp.transpose
        return cls(transpose(weight, order), num_contracted)

    @classmethod
    def join(cls, leaves: Sequence[TransposedWeight]) -> TransposedWeight:
        """Return weights with one contracted axis, of equal length, as one with one output axis."""
        flat = [leaf.weight.reshape(-1, leaf.weight.shape[-1]) for leaf in leaves]
        return cls(place.joined(flat), 1)

    def cut(self, begin: int, shape: tuple[int, ...]) -> TransposedWeight:
        """Return the weight of these output axes, which begins at a row of a joined one."""
        rows = self.weight[begin : begin + prod(shape)]
        return type(self)(rows.reshape(*shape, -1), 1)

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.weight.shape[: self.weight.ndim - self.num_contracted]

    def untransposed(self) -> Array:
        """Return the weight with its contracted axes first again."""
        count = len(self.out_axes)
        return jnp.transpose(self.weight, (*range(count, self.weight.ndim), *range(count)))

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, the untransposed weight)."""
        inputs, _, out = equation.partition("->")
        left, right = inputs.split(",")
        letters = right[self.num_contracted :] + right[: self.num_contracted]
        return contract(f"{left},{letters}->{out}", x, self.weight, dtype=dtype)
