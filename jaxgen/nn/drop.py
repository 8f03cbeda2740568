"""Dropout whose draws are those of the whole batch, however the batch is spread."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.mesh import place


class Drop(nn.Module):
    """Zeroes elements with probability `rate` and scales up the rest (Srivastava et al. 2014).

    Where code is written per device (shard_map, pmap), the mask of all rows is drawn and the
    device takes its own, so that the three forms of a step drop the same elements.
    """

    rate: float
    deterministic: bool

    @property
    def active(self) -> Drop | None:
        """The module where it drops anything, else None."""
        return None if self.rate == 0.0 or self.deterministic else self

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return x [B, ...] with its first axis taken for the rows."""
        if self.active is None:
            return x
        keep = 1.0 - self.rate
        mask = _mask(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))


def _mask(key: jax.Array, keep: float, shape: tuple[int, ...]) -> jax.Array:
    axes = {axis: size for axis, size in place.manual().items() if size > 1}
    index, count = jnp.zeros((), jnp.int32), 1
    for axis, size in axes.items():
        index, count = index * size + jax.lax.axis_index(axis), count * size
    whole = jax.random.bernoulli(key, keep, (count * shape[0], *shape[1:]))
    if count == 1:
        return whole
    return jax.lax.dynamic_slice_in_dim(whole, index * shape[0], shape[0], axis=0)
