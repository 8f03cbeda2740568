"""A computation that XLA keeps apart from what is around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


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
    return _rows_first.bind(x.T)


# A layout has no place in an export, which is for other compilers, and JAX says only where it
# lowers a program whether it is one. Elsewhere this is `with_layout_constraint`.
_rows_first = Primitive("rows_first")
_rows_first.def_impl(lambda x: x)
_rows_first.def_abstract_eval(lambda x: x)


def _lower(ctx: mlir.LoweringRuleContext, x: Any) -> Any:
    about = ctx.module_context.lowering_parameters
    form = (lambda x: x) if getattr(about, "for_export", False) else _laid
    return mlir.lower_fun(form, multiple_results=False)(ctx, x)


def _laid(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


mlir.register_lowering(_rows_first, _lower)
ad.deflinear2(_rows_first, lambda grad, _: [_rows_first.bind(grad)])
batching.primitive_batchers[_rows_first] = lambda args, dims: (
    _rows_first.bind(jnp.moveaxis(args[0], dims[0], 0)),
    0,
)
