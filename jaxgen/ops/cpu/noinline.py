"""Computations that XLA does not fuse with the code around them."""

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


def noinline(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Decorate a function so that XLA does not inline its call, and fuses nothing across it.

    optimization_barrier does not do that on a CPU, where XLA removes it before it fuses.
    """
    compiled = jax.jit(function)

    @wraps(function)
    def call(*args: jax.Array) -> jax.Array:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call


@noinline
def transpose(x: jax.Array) -> jax.Array:
    """Return x^T as a copy in memory, made by one pass of its own.

    XLA on a CPU would fuse the transpose with the producer of x, or with a reshape after it, which
    is three to nine times as slow; or repeat it for every reader. Without the layout constraint the
    result would be a column-major view of x, and bfloat16 matmuls with it run in float32.
    """
    return _rows_first.bind(x.T)


# A layout has no place in an export, which is for other compilers, and JAX says only where it
# lowers a program whether it is one. Elsewhere this is `with_layout_constraint`.
_rows_first = Primitive("rows_first")
_rows_first.def_impl(lambda x: x)
_rows_first.def_abstract_eval(lambda x: x)


def _lower(ctx: mlir.LoweringRuleContext, x: Any) -> Any:
    about = ctx.module_context.lowering_parameters
    form = (lambda x: x) if getattr(about, "for_export", False) else _row_major
    return mlir.lower_fun(form, multiple_results=False)(ctx, x)


def _row_major(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


mlir.register_lowering(_rows_first, _lower)
ad.deflinear2(_rows_first, lambda grad, _: [_rows_first.bind(grad)])
batching.primitive_batchers[_rows_first] = lambda args, dims: (
    _rows_first.bind(jnp.moveaxis(args[0], dims[0], 0)),
    0,
)
