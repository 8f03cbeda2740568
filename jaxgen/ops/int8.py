"""Weights of one byte each, for decoding: memory is what a step of few rows waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.ops.contract import product

LARGEST = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A weight as whole numbers and a scale for each output; products are in the dtype asked for.

    Axes of the output come first, as in `Turned`; inner: how many of x are summed over. Rounding
    moves a weight by at most half a scale (absmax quantisation: Dettmers et al. 2022, section 2).
    """

    whole: Any  # [O, I] int8
    scale: Any  # [output axes] float32
    inner: int = field(metadata={"static": True})

    @classmethod
    def of(cls, weight: Any, inner: int) -> Int8:
        """Return a weight, whose first `inner` axes are summed over, rounded."""
        order = (*range(inner, weight.ndim), *range(inner))
        return cls.of_turned(jnp.transpose(weight, order), inner)

    @classmethod
    def of_turned(cls, weight: Any, inner: int) -> Int8:
        """Return a weight, whose last `inner` axes are summed over, rounded: a table is one."""
        weight = weight.astype(jnp.float32)
        over = tuple(range(weight.ndim - inner, weight.ndim))
        most = jnp.max(jnp.abs(weight), axis=over, keepdims=True)
        scale = jnp.where(most > 0, most, 1.0) / LARGEST
        whole = jnp.round(weight / scale).astype(jnp.int8)
        scale = jnp.squeeze(scale, over)
        return cls(whole.reshape(scale.size, -1), scale, inner)

    @classmethod
    def join(cls, leaves: Sequence[Int8]) -> Int8:
        """Return weights with one inner axis, of equal length, as one with one output axis."""
        scales = [leaf.scale.reshape(-1) for leaf in leaves]
        return cls(jnp.concatenate([leaf.whole for leaf in leaves]), jnp.concatenate(scales), 1)

    def cut(self, begin: int, shape: tuple[int, ...]) -> Int8:
        """Return the weight of these output axes, which begins at a row of a joined one."""
        rows = slice(begin, begin + prod(shape))
        return type(self)(self.whole[rows], self.scale[rows].reshape(shape), 1)

    @property
    def outer(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.scale.shape

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return the product that `equation`, "BT...->BT...", has with the weight as it was."""
        rows = x.astype(dtype).reshape(*x.shape[: x.ndim - self.inner], -1)
        y = product("BTD,FD->BTF", rows, self.whole)
        return y.reshape(*y.shape[:-1], *self.scale.shape) * self.scale.astype(y.dtype)

    def lookup(self, ids: Int[Array, "..."], dtype: str) -> Array:
        """Return rows of a table."""
        rows, scales = (jnp.take(x, ids, axis=0, mode="clip") for x in (self.whole, self.scale))
        return (rows * scales[..., None]).astype(dtype)
