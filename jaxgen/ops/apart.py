"""A computation that XLA keeps apart from what is around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.xla_metadata import set_xla_metadata

from jaxgen.mesh.place import platform


def apart(
    function: Callable[..., jax.Array], static: tuple[int, ...] = ()
) -> Callable[..., jax.Array]:
    """Return the function as a call that XLA does not inline, so that it fuses nothing across it.

    A barrier does not do that on a CPU, where XLA expands it before it fuses.
    static: which arguments are no arrays.
    """
    compiled = jax.jit(function, static_argnums=static)

    @wraps(function)
    def called(*args: Any) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return called


def transposed(x: jax.Array, *order: int) -> jax.Array:
    """Return x with its axes in this order, in memory too.

    On a CPU that is one pass of its own. XLA would fuse it with what makes x, which it then
    computes in the order of the result, or with a reshape after it: both are three to nine times
    as slow; or do it again for everyone who reads it.
    """
    return x.transpose(order) if platform() != "cpu" else _written(x, order)


@partial(apart, static=(1,))
def _written(x: jax.Array, order: tuple[int, ...]) -> jax.Array:
    # Without its layout the result would be x as it is, under another name.
    return with_layout_constraint(x.transpose(order), Layout(tuple(range(x.ndim))))
