"""Random keys from the seeds that people give."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray


def from_seed(seed: int) -> PRNGKeyArray:
    """Return the key of a seed from 0 to 2^64 - 1, whatever default generator is configured.

    Up to 2^32 - 1 it is jax.random.key(seed); beyond, that one drops bits or refuses.
    """
    halves = jnp.asarray([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32)
    return jax.random.wrap_key_data(halves, impl="threefry2x32")
