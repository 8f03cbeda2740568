"""int8 weights with a scale for each block of inputs: Q8_0 of GGUF files, as it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.ops.contract import product
from jaxgen.ops.cpu import matmul
from jaxgen.pytree import register_dataclass


@register_dataclass
@dataclass(frozen=True)
class Int8Blocks:
    """A weight as int8 values and a scale for each block of them, 8.5 bits a number.

    Output axes come first, as in `Int8`; num_contracted: how many axes are summed over. A matmul
    makes the numbers of one matrix, in the compute dtype, for as long as it takes; on a CPU of one
    row as they are read, of a few rows block by block.
    """

    values: Any  # [O, I] int8
    scale: Any  # [output axes, blocks] float32
    num_contracted: int = field(metadata={"static": True})

    @classmethod
    def join(cls, leaves: Sequence[Int8Blocks]) -> Int8Blocks:
        """Return weights with one contracted axis, of equal length, as one with one output axis."""
        scales = [leaf.scale.reshape(-1, leaf.scale.shape[-1]) for leaf in leaves]
        return cls(jnp.concatenate([leaf.values for leaf in leaves]), jnp.concatenate(scales), 1)

    def cut(self, begin: int, shape: tuple[int, ...]) -> Int8Blocks:
        """Return the weight of these output axes, which begins at a row of a joined one."""
        rows = slice(begin, begin + prod(shape))
        scale = self.scale[rows].reshape(*shape, self.scale.shape[-1])
        return type(self)(self.values[rows], scale, 1)

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.scale.shape[:-1]

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, weight) for an equation "BT...->BT..."."""
        rows = x.astype(dtype).reshape(*x.shape[: x.ndim - self.num_contracted], -1)
        scale = self.scale.reshape(-1, self.scale.shape[-1])

        def numbers(begin: Any, size: int) -> Array:
            slices = (lax.dynamic_slice_in_dim(one, begin, size) for one in (self.values, scale))
            return _numbers(*slices).astype(dtype)

        flat = rows.reshape(-1, rows.shape[-1])
        y = matmul.of_one_row(flat, (self.values, scale), _numbers)
        if y is None:
            y = matmul.by_blocks(flat, len(scale), numbers)
        if y is None:
            y = product("BTD,FD->BTF", rows, _numbers(self.values, scale).astype(dtype))
        return y.reshape(*rows.shape[:-1], *self.out_axes)

    def lookup(self, ids: Int[Array, "..."], dtype: str) -> Array:
        """Return rows of a table."""
        rows, scales = (jnp.take(x, ids, axis=0, mode="clip") for x in (self.values, self.scale))
        return _numbers(rows, scales).astype(dtype)


def _numbers(values: Array, scale: Array) -> Array:
    """[..., I] int8 and [..., blocks] to [..., I] float32."""
    blocks = values.reshape(*scale.shape, -1).astype(jnp.float32) * scale[..., None]
    return blocks.reshape(values.shape)
