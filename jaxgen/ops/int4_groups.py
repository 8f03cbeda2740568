"""4-bit integer weights with a scale, and perhaps a zero point, for each group of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.ops.int8_blocks import Int8Blocks
from jaxgen.pytree import register_dataclass

ZERO = 8  # the nibble of 0 where no zero points are stored


@register_dataclass
@dataclass(frozen=True)
class Int4Groups:
    """A weight as nibbles, (nibble - zero) * scale, two to a byte, the first in the low half.

    Output axes come first, as in `Int8`; num_contracted: how many axes are summed over. A matmul
    widens one matrix for as long as it takes. XLA on a CPU is slow at that: there `widened` keeps
    the same numbers as int8.
    """

    values: Any  # [O, I / 2] uint8
    scale: Any  # [output axes, groups] float32
    zero: Any  # [output axes, groups] uint8, or None: 8 everywhere
    num_contracted: int = field(metadata={"static": True})

    def widened(self) -> Int8Blocks:
        """Return exactly the same numbers as int8 values; leading axes of a stack stay."""
        lead = self.values.shape[:-1]
        nibbles = jnp.stack([self.values & 15, self.values >> 4], axis=-1).astype(jnp.int8)
        groups = nibbles.reshape(*lead, self.scale.shape[-1], -1)
        zero = ZERO if self.zero is None else self.zero.reshape(*groups.shape[:-1], 1)
        values = groups - jnp.asarray(zero).astype(jnp.int8)
        return Int8Blocks(values.reshape(*lead, -1), self.scale, self.num_contracted)

    @classmethod
    def join(cls, leaves: Sequence[Int4Groups]) -> Int4Groups:
        """Return weights with one contracted axis, of equal length, as one with one output axis."""

        def rows(name: str) -> Any:
            parts = [getattr(leaf, name) for leaf in leaves]
            if all(part is None for part in parts):
                return None
            full = [
                jnp.full(leaf.scale.shape, ZERO, jnp.uint8) if part is None else part
                for part, leaf in zip(parts, leaves, strict=True)
            ]
            return jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in full])

        return cls(rows("values"), rows("scale"), rows("zero"), 1)

    def cut(self, begin: int, shape: tuple[int, ...]) -> Int4Groups:
        """Return the weight of these output axes, which begins at a row of a joined one."""
        rows = slice(begin, begin + prod(shape))
        scale, zero = (
            None if x is None else x[rows].reshape(*shape, x.shape[-1])
            for x in (self.scale, self.zero)
        )
        return type(self)(self.values[rows], scale, zero, 1)

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.scale.shape[:-1]

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, weight) for an equation "BT...->BT..."."""

        def matmul(leaf: Int4Groups, x: Array) -> Array:
            return leaf.widened().contract(equation, x, dtype)

        # Widened again for its gradient, rather than kept.
        return jax.checkpoint(matmul)(self, x)
