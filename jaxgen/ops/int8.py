"""int8 weights for decoding: a step of few rows is bound by memory bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.ops.contract import product
from jaxgen.pytree import register_dataclass

LARGEST = 127


@register_dataclass
@dataclass(frozen=True)
class Int8:
    """A weight as int8 values and one scale per output; matmuls run in the compute dtype.

    Output axes come first, as in `TransposedWeight`; num_contracted: how many axes are summed over.
    Rounding moves a weight by at most half a scale (absmax quantisation: Dettmers et al. 2022,
    section 2).
    """

    values: Any  # [O, I] int8
    scale: Any  # [output axes] float32
    num_contracted: int = field(metadata={"static": True})

    @classmethod
    def of(cls, weight: Any, num_contracted: int) -> Int8:
        """Quantise a weight whose first `num_contracted` axes are summed over."""
        order = (*range(num_contracted, weight.ndim), *range(num_contracted))
        return cls.of_transposed(jnp.transpose(weight, order), num_contracted)

    @classmethod
    def of_transposed(cls, weight: Any, num_contracted: int) -> Int8:
        """Quantise a weight whose last `num_contracted` axes are summed over, such as a table."""
        weight = weight.astype(jnp.float32)
        over = tuple(range(weight.ndim - num_contracted, weight.ndim))
        values, scale = _round(weight, over)
        scale = jnp.squeeze(scale, over)
        return cls(values.reshape(scale.size, -1), scale, num_contracted)

    @classmethod
    def join(cls, leaves: Sequence[Int8]) -> Int8:
        """Return weights with one contracted axis, of equal length, as one with one output axis."""
        scales = [leaf.scale.reshape(-1) for leaf in leaves]
        return cls(jnp.concatenate([leaf.values for leaf in leaves]), jnp.concatenate(scales), 1)

    def cut(self, begin: int, shape: tuple[int, ...]) -> Int8:
        """Return the weight of these output axes, which begins at a row of a joined one."""
        rows = slice(begin, begin + prod(shape))
        return type(self)(self.values[rows], self.scale[rows].reshape(shape), 1)

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.scale.shape

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, weight) for an equation "BT...->BT..."."""
        rows = x.astype(dtype).reshape(*x.shape[: x.ndim - self.num_contracted], -1)
        y = product("BTD,FD->BTF", rows, self.values)
        return y.reshape(*y.shape[:-1], *self.scale.shape) * self.scale.astype(y.dtype)

    def lookup(self, ids: Int[Array, "..."], dtype: str) -> Array:
        """Return rows of a table."""
        rows, scales = (jnp.take(x, ids, axis=0, mode="clip") for x in (self.values, self.scale))
        return (rows * scales[..., None]).astype(dtype)


@register_dataclass
@dataclass(frozen=True)
class Int8Activations(Int8):
    """An `Int8` weight whose inputs are rounded to int8 as well, with a scale for each token.

    The matmul is one of integers, summed in int32 (W8A8; Dettmers et al. 2022).
    """

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, weight) for an equation "BT...->BT..."."""
        rows = x.astype(jnp.float32).reshape(*x.shape[: x.ndim - self.num_contracted], -1)
        values, scale = _round(rows, (-1,))
        y = jnp.einsum("BTD,FD->BTF", values, self.values, preferred_element_type=jnp.int32)
        y = y.astype(jnp.float32) * scale * self.scale.reshape(-1)
        return y.astype(dtype).reshape(*y.shape[:-1], *self.scale.shape)


def _round(x: Array, over: tuple[int, ...]) -> tuple[Array, Array]:
    """Return (values, scale) with one scale for all numbers along some axes, which stay as 1."""
    largest = jnp.max(jnp.abs(x), axis=over, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / LARGEST
    return jnp.round(x / scale).astype(jnp.int8), scale
