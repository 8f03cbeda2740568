"""A computation that XLA keeps apart from what is around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return the function as a call that XLA does not inline, so that it fuses nothing across it.

    A barrier does not do that on a CPU, where XLA expands it before it fuses.
    """
    compiled = jax.jit(function)

    @wraps(function)
    def called(*args: jax.Array) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return called
