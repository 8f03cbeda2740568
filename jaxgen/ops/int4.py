"""4-bit weights beneath an adapter: NF4 with scales that are quantised as well (QLoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgen.ops.contract import product
from jaxgen.pytree import register_dataclass

BLOCK = 64  # inputs that share a scale
SCALES = 255  # steps of a scale
# Quantiles of a normal distribution on each side of 0: NF4 (Dettmers et al. 2023, appendix E).
VALUES = np.asarray(
    (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0), np.float32,
)  # fmt: skip


@register_dataclass
@dataclass(frozen=True)
class Int4:
    """A weight as NF4: two values to a byte, a byte for the scale of each block of 64 inputs.

    4.13 bits a number where rows are long: the scales of an output are 8-bit parts of its largest
    (double quantisation). Output axes come first, as in `Int8`; num_contracted: how many axes are
    summed over. A matmul widens one matrix for as long as it takes, and does so again for its
    gradient rather than keep it.
    """

    values: Any  # [O, blocks * 32] uint8
    scale: Any  # [O, blocks] uint8
    largest: Any  # [output axes] float32
    num_contracted: int = field(metadata={"static": True})

    @classmethod
    def of(cls, weight: Any, num_contracted: int) -> Int4:
        """Quantise a weight whose first `num_contracted` axes are summed over."""
        outer, count = weight.shape[num_contracted:], prod(weight.shape[:num_contracted])
        rows = weight.reshape(count, -1).T.astype(jnp.float32)
        rows = jnp.pad(rows, ((0, 0), (0, -count % BLOCK)))
        blocks = rows.reshape(len(rows), -1, BLOCK)
        most = jnp.max(jnp.abs(blocks), axis=-1)
        largest = jnp.max(most, axis=-1)
        # Rounded up, so that no number lies outside its block.
        scale = jnp.ceil(most / jnp.where(largest > 0, largest, 1.0)[:, None] * SCALES)
        scale = scale.astype(jnp.uint8)
        unit = blocks / jnp.maximum(_scales(scale, largest), jnp.finfo(jnp.float32).tiny)[..., None]
        ends = (VALUES[1:] + VALUES[:-1]) / 2
        codes = jnp.searchsorted(ends, unit).astype(jnp.uint8).reshape(len(rows), -1, 2)
        packed = codes[..., 0] | codes[..., 1] << 4
        return cls(packed, scale, largest.reshape(outer), num_contracted)

    @classmethod
    def join(cls, leaves: Sequence[Int4]) -> Int4:
        """Return weights with one contracted axis, of equal length, as one with one output axis."""
        return cls(
            jnp.concatenate([leaf.values for leaf in leaves]),
            jnp.concatenate([leaf.scale for leaf in leaves]),
            jnp.concatenate([leaf.largest.reshape(-1) for leaf in leaves]),
            1,
        )

    def cut(self, begin: int, shape: tuple[int, ...]) -> Int4:
        """Return the weight of these output axes, which begins at a row of a joined one."""
        rows = slice(begin, begin + prod(shape))
        return type(self)(self.values[rows], self.scale[rows], self.largest[rows].reshape(shape), 1)

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.largest.shape

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, weight) for an equation "BT...->BT..."."""
        rows = x.astype(dtype).reshape(*x.shape[: x.ndim - self.num_contracted], -1)
        y = _matmul(rows, self.values, self.scale, self.largest.reshape(-1))
        return y.reshape(*y.shape[:-1], *self.out_axes)


@jax.checkpoint
def _matmul(x: Array, values: Array, scale: Array, largest: Array) -> Array:
    """Return x [B, T, I] times a weight: [B, T, O]."""
    codes = jnp.stack([values & 15, values >> 4], axis=-1)
    unit = jnp.asarray(VALUES)[codes].reshape(*scale.shape, BLOCK)
    numbers = (unit * _scales(scale, largest)[..., None]).reshape(len(values), -1)
    return product("BTD,FD->BTF", x, numbers[:, : x.shape[-1]].astype(x.dtype))


def _scales(scale: Array, largest: Array) -> Array:
    """Return the scale of each block [O, blocks] as float32."""
    return scale.astype(jnp.float32) * (largest[:, None] / SCALES)
