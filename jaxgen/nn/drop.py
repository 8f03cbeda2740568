"""Dropout whose mask does not depend on how the batch is sharded."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxgen.mesh import place
from jaxgen.ops.random import DropoutRng, dropout


class Drop(nn.Module):
    """Zeroes elements with probability `rate` and scales up the rest (Srivastava et al. 2014).

    Inside shard_map or pmap each device takes its part of the whole batch's mask, so that every
    partitioning of a step drops the same elements.
    """

    rate: float
    deterministic: bool

    @property
    def active(self) -> Drop | None:
        """The module where it drops anything, else None."""
        return None if self.rate == 0.0 or self.deterministic else self

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x [B, ...] with elements dropped; its first axis is the batch."""
        if self.active is None:
            return x
        return dropout(x, self.rng(x.shape[0]))

    def rng(self, rows: int) -> DropoutRng:
        """Return the source of the mask of an array of `rows` rows: all, or one device's."""
        return DropoutRng(self.make_rng("dropout"), 1.0 - self.rate, *place.global_rows(rows))
