"""A computation that XLA keeps apart from what is around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import jax
from jax.experimental.layout import Layout, with_layout_constraint
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


@apart
def transposed(x: jax.Array) -> jax.Array:
    """Return a matrix transposed in memory too, by one pass of its own.

    XLA on a CPU would fuse it with what makes x, which it then computes in the order of x^T, or
    with a reshape after it: both are three to nine times as slow; or do it again for everyone who
    reads it. Without its layout the result would be x as it is, under another name, whose columns
    come first: products of such bfloat16 are made in float32.
    """
    return with_layout_constraint(x.T, Layout((0, 1)))
