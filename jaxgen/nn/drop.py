"""Dropout whose draws are those of the whole batch, however the batch is spread."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.mesh import place
from jaxgen.ops.chance import Chance, drop


class Drop(nn.Module):
    """Zeroes elements with probability `rate` and scales up the rest (Srivastava et al. 2014).

    Where code is written per device (shard_map, pmap), a device drops what it would as a part of
    the whole batch, so that the three forms of a step drop the same elements.
    """

    rate: float
    deterministic: bool

    @property
    def active(self) -> Drop | None:
        """The module where it drops anything, else None."""
        return None if self.rate == 0.0 or self.deterministic else self

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x [B, ...] with its first axis taken for the rows."""
        if self.active is None:
            return x
        return drop(x, self.chance(x.shape[0]))

    def chance(self, rows: int) -> Chance:
        """Return what decides for an array of so many rows, all of them or one device's."""
        axes = {axis: size for axis, size in place.manual().items() if size > 1}
        index, count = jnp.zeros((), jnp.int32), 1
        for axis, size in axes.items():
            index, count = index * size + jax.lax.axis_index(axis), count * size
        key = self.make_rng("dropout")
        return Chance(key, 1.0 - self.rate, index * rows, count * rows)
