"""Every matmul with a weight goes through here, so that other leaves can replace arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.derivatives import custom_vjp
from jaxgen.mesh import gather, shards
from jaxgen.mesh.place import is_ruled, is_shared, platform
from jaxgen.ops import cpu
from jaxgen.ops.cpu import matmul
from jaxgen.ops.cpu.noinline import transpose
from jaxgen.pytree import register_dataclass


def contract(equation: str, x: Float[Array, "..."], w: Any, *, dtype: str) -> Float[Array, "..."]:
    """Return einsum(equation, x, w) computed in `dtype`; a leaf with `.contract` does it itself.

    Quantised, low-rank or adapted leaves implement `leaf.contract(equation, x, dtype)`.
    """
    if hasattr(w, "contract"):
        return w.contract(equation, x, dtype)
    x, w = x.astype(dtype), w.astype(dtype)
    return _shared(equation, x, w) if is_shared() else _gather_and_contract(equation, x, w)


def _gather_and_contract(equation: str, x: Array, w: Array) -> Array:
    left, _, rest = equation.partition(",")
    width = x.shape[left.index("D")] if "D" in left else None
    return product(equation, x, gather(w, rest.partition("->")[0], width))


def product(equation: str, x: Float[Array, "..."], w: Array) -> Float[Array, "..."]:
    """Return einsum(equation, x, w) as one matmul of two matrices, where the letters allow it.

    XLA:CPU transposes the gradient of a contraction over B and T separately at four times the cost
    of the matmul; flattened to one axis it is a plain matmul. Axes sharded over a mesh are not
    flattened: the result would have no sharding.
    """
    inputs, _, out = equation.partition("->")
    left, right = inputs.split(",")
    rows = left.rstrip(right)
    inner = left.removeprefix(rows)
    first = right.startswith(inner)
    columns = right.removeprefix(inner) if first else right.removesuffix(inner)
    spread = shards(left + right) > 1 or not is_ruled()
    flat = out == rows + columns and inner and not spread
    if not flat or set(columns) & set(left):
        return jnp.einsum(equation, x, w)
    wide = prod(x.shape[len(rows) :])
    matrix = w.reshape((wide, -1) if first else (-1, wide))
    y: Any = _matrices(first, x.reshape(-1, wide), matrix)
    out_sizes = w.shape[len(inner) :] if first else w.shape[: -len(inner)]
    return y.reshape(*x.shape[: len(rows)], *out_sizes)


@partial(custom_vjp, nondiff_argnums=(0,))
def _matrices(first: bool, x: Array, w: Array) -> Array:
    """Return x [R, I] times w, which is [I, C] if its inner axis comes first, else [C, I]."""
    return _forward(first, x, w)


def _matrices_forward(first: bool, x: Array, w: Array) -> tuple[Array, tuple[()]]:
    # Not `_matrices`: remat policies look for the dot itself.
    return _forward(first, x, w), ()


def _matrices_backward(
    first: bool, args: tuple[Array, Array], _: tuple[()], grad: Array
) -> tuple[Array, Array]:
    x, w = args
    left, right = (x, grad) if first else (grad, x)
    return _dot(grad, w, 1, 1 if first else 0), weight_gradient(left, right)


_matrices.defvjp(_matrices_forward, _matrices_backward)


def _forward(first: bool, x: Array, w: Array) -> Array:
    if not first and (y := matmul.of_rows(x, w)) is not None:
        return y
    return _dot(x, w.astype(x.dtype), 1, 0 if first else 1)


def weight_gradient(left: Array, right: Array) -> Array:
    """Return left^T right for left [R, M] and right [R, N]: the gradient of a weight.

    XLA on a CPU transposes the left factor as it goes, which two threads hardly share, and which
    costs as much as the matmul where rows of M lie a power of two apart. So the narrower factor is
    copied first, small beside the matmul, and stands on the left.
    """
    if not cpu.enabled("weight_gradients"):
        return _dot(left, right, 0, 0)
    if left.shape[1] <= right.shape[1]:
        return _dot(transpose(left), right, 1, 0)
    return transpose(_dot(transpose(right), left, 1, 0))


def _dot(x: Array, y: Array, left: int, right: int) -> Array:
    if x.dtype == jnp.bfloat16 and cpu.enabled("bfloat16"):
        return matmul.of_bfloat16(x, y, left, right)
    # XLA on a GPU turns the matmul of one row into elementwise products in memory and a sum.
    double = x.shape[1 - left] == 1 and platform() == "gpu"
    if double:
        x = jnp.concatenate([x, jnp.zeros_like(x)], axis=1 - left)
    y = lax.dot_general(x, y, (((left,), (right,)), ((), ())))
    return y[:1] if double else y


@partial(custom_vjp, nondiff_argnums=(0,))
def _shared(equation: str, x: Array, w: Array) -> Array:
    """Return the matmul with a sharded weight, which the backward pass gathers again.

    Saved for the backward pass, the gathered weights of all layers would be the whole model on
    every device, which sharding them is to avoid.
    """
    return _gather_and_contract(equation, x, w)


def _shared_forward(equation: str, x: Array, w: Array) -> tuple[Array, tuple[()]]:
    return _gather_and_contract(equation, x, w), ()


def _shared_backward(
    equation: str, args: tuple[Array, Array], _: tuple[()], grad: Array
) -> tuple[Array, Array]:
    # Tied to the gradient, or the compiler would find both gathers equal and keep the first.
    (x, w), grad = lax.optimization_barrier((args, grad))
    return jax.vjp(partial(_gather_and_contract, equation), x, w)[1](grad)


_shared.defvjp(_shared_forward, _shared_backward)


def cast(w: Any, *, dtype: str) -> Any:
    """Return a weight in the dtype of its matmuls; a leaf with `.contract` stays as it is."""
    if isinstance(w, Biased):
        return replace(w, weight=cast(w.weight, dtype=dtype))
    return w if hasattr(w, "contract") else w.astype(dtype)


def add_bias(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return y plus a bias on its last axes, in y's dtype.

    Added in float32, and so is the bias's gradient: a sum over all positions, which XLA on a CPU
    takes 25 times as long for in bfloat16.
    """
    bias = jnp.expand_dims(bias.astype(jnp.float32), tuple(range(y.ndim - bias.ndim)))
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


def lookup(
    table: Any, ids: Int[Array, "..."], *, dtype: str, axes: str = "VD"
) -> Float[Array, "... D"]:
    """Return rows of an embedding table in `dtype`; a leaf with `.lookup` does it itself.

    axes: the table's own, "VD" for tokens, "SD" for positions.
    """
    if hasattr(table, "lookup"):
        return table.lookup(ids, dtype)
    return jnp.take(gather(table, axes), ids, axis=0, mode="clip").astype(dtype)


@register_dataclass
@dataclass(frozen=True)
class PerRow:
    """A bias or scale that each row of a batch has a copy of, to get a gradient of its own.

    values: [B, 1, ..., axes of the parameter], as it stands beside activations.
    """

    values: Any


@register_dataclass
@dataclass(frozen=True)
class Biased:
    """A weight with a bias that is added to the last axis of its matmuls."""

    weight: Any
    bias: Any  # [V], or a leaf of a JAX transformation

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return the matmul plus the bias."""
        y = contract(equation, x, self.weight, dtype=dtype)
        return add_bias(y, self.bias)
