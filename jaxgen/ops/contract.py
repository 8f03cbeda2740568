"""Every matmul with a weight goes through here, so that other leaves can replace arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.derivatives import custom_vjp
from jaxgen.export import are_known
from jaxgen.mesh import gather, shards
from jaxgen.mesh.place import is_ruled, is_shared, platform
from jaxgen.ops.noinline import transposed
from jaxgen.pytree import register_dataclass


def contract(equation: str, x: Float[Array, "..."], w: Any, *, dtype: str) -> Float[Array, "..."]:
    """Return einsum(equation, x, w) computed in `dtype`; a leaf with `.contract` does it itself.

    Quantised, low-rank or adapted leaves implement `leaf.contract(equation, x, dtype)`.
    """
    if hasattr(w, "contract"):
        return w.contract(equation, x, dtype)
    x, w = x.astype(dtype), w.astype(dtype)
    return _shared(equation, x, w) if is_shared() else _with_whole(equation, x, w)


def _with_whole(equation: str, x: Array, w: Array) -> Array:
    left, _, rest = equation.partition(",")
    width = x.shape[left.index("D")] if "D" in left else None
    return product(equation, x, gather(w, rest.partition("->")[0], width))


def product(equation: str, x: Float[Array, "..."], w: Array) -> Float[Array, "..."]:
    """Return einsum(equation, x, w) as one product of two matrices, where the letters allow it.

    On a CPU the gradient of a product over B and T separately is transposed by hand, at four
    times its own cost; flattened to one axis it is a plain product again. Axes that are spread
    over a mesh stay apart: their flattening has no layout.
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
    kept = w.shape[len(inner) :] if first else w.shape[: -len(inner)]
    return y.reshape(*x.shape[: len(rows)], *kept)


@partial(custom_vjp, nondiff_argnums=(0,))
def _matrices(first: bool, x: Array, w: Array) -> Array:
    """Return x [R, I] times w, which is [I, C] if its inner axis comes first, else [C, I]."""
    return _forward(first, x, w)


def _matrices_forward(first: bool, x: Array, w: Array) -> tuple[Array, tuple[()]]:
    # The product itself, not `_matrices`: remat policies look for it.
    return _forward(first, x, w), ()


def _matrices_backward(
    first: bool, args: tuple[Array, Array], _: tuple[()], grad: Array
) -> tuple[Array, Array]:
    x, w = args
    left, right = (x, grad) if first else (grad, x)
    return _dot(grad, w, 1, 1 if first else 0), _over_rows(left, right)


_matrices.defvjp(_matrices_forward, _matrices_backward)

FEW = 64  # rows of a decoding step at most


def _forward(first: bool, x: Array, w: Array) -> Array:
    rows, turned = x.shape[0], not first and platform() == "cpu"
    if turned and rows == 1 and w.dtype.itemsize < 4:
        return _one_row(x, w)
    w = w.astype(x.dtype)
    # Of bfloat16, jaxlib 0.10.2 has no such product in some shapes.
    if turned and are_known(rows) and 1 < rows <= FEW and x.dtype == jnp.float32:
        # XLA on a CPU is faster with the weight on the left; without the barrier it would take the
        # two turns for none.
        return lax.optimization_barrier(_dot(w, x, 1, 1)).T
    return _dot(x, w, 1, 0 if first else 1)


def _over_rows(left: Array, right: Array) -> Array:
    """Return left^T right for left [R, M] and right [R, N]: the gradient of a weight.

    XLA on a CPU turns the left factor as it goes, which two threads hardly share, and which costs
    as much as the product where rows of M lie a power of two apart. So the narrower factor is laid
    out anew, small beside the product, and comes first.
    """
    if platform() != "cpu":
        return _dot(left, right, 0, 0)
    if left.shape[1] <= right.shape[1]:
        return _dot(transposed(left), right, 1, 0)
    return transposed(_dot(transposed(right), left, 1, 0))


def _dot(x: Array, y: Array, left: int, right: int) -> Array:
    axes, where = (((left,), (right,)), ((), ())), platform()
    # XLA on a CPU takes the instructions for bfloat16 only where sums are float32, which they are
    # in either case, and there are two rows or more: else it is two to four times as slow. On a
    # GPU it makes of one row elementwise products, written down and read again to be summed.
    half = x.dtype == jnp.bfloat16 and where == "cpu"
    double = x.shape[1 - left] == 1 and (half or where == "gpu")
    if double:
        x = jnp.concatenate([x, jnp.zeros_like(x)], axis=1 - left)
    found = lax.dot_general(x, y, axes, preferred_element_type=jnp.float32 if half else None)
    return (found[:1] if double else found).astype(x.dtype)


def _one_row(x: Array, w: Array) -> Array:
    # In this form alone XLA on a CPU makes float32 of narrower weights as it reads them. Tied to
    # the row, or they would be written down before the loop over tokens.
    dtype, (x, w) = x.dtype, lax.optimization_barrier((x, w))
    # rem(x, inf) is a no-op that XLA does not duplicate into the matmul loop; it pins x outside.
    x = lax.rem(x.astype(jnp.float32), jnp.float32(jnp.inf))
    return (x @ w.astype(jnp.float32).T).astype(dtype)


@partial(custom_vjp, nondiff_argnums=(0,))
def _shared(equation: str, x: Array, w: Array) -> Array:
    """Return the matmul with a sharded weight, which the backward pass gathers again.

    Saved for the backward pass, the gathered weights of all layers would be the whole model on
    every device, which sharding them is to avoid.
    """
    return _with_whole(equation, x, w)


def _shared_forward(equation: str, x: Array, w: Array) -> tuple[Array, tuple[()]]:
    return _with_whole(equation, x, w), ()


def _shared_backward(
    equation: str, args: tuple[Array, Array], _: tuple[()], grad: Array
) -> tuple[Array, Array]:
    # Tied to the gradient, or the compiler would find both gathers equal and keep the first.
    (x, w), grad = lax.optimization_barrier((args, grad))
    return jax.vjp(partial(_with_whole, equation), x, w)[1](grad)


_shared.defvjp(_shared_forward, _shared_backward)


def cast(w: Any, *, dtype: str) -> Any:
    """Return a weight in the dtype of its matmuls; a leaf with `.contract` stays as it is."""
    if isinstance(w, Biased):
        return replace(w, weight=cast(w.weight, dtype=dtype))
    return w if hasattr(w, "contract") else w.astype(dtype)


def shifted(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
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
class Biased:
    """A weight with a bias that is added to the last axis of its matmuls."""

    weight: Any
    bias: Any  # [V], or what a transformation puts in the place of a leaf

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return the matmul plus the bias."""
        y = contract(equation, x, self.weight, dtype=dtype)
        return shifted(y, self.bias)


@register_dataclass
@dataclass(frozen=True)
class TransposedWeight:
    """A weight stored with its output axes first, which a CPU reads faster for a few rows.

    num_contracted: how many axes, now the last, are summed over.
    """

    weight: Any  # [output axes, contracted axes]
    num_contracted: int = field(metadata={"static": True})

    @classmethod
    def of(cls, weight: Any, num_contracted: int) -> TransposedWeight:
        """Return a copy of a weight whose first `num_contracted` axes are summed over."""
        order = (*range(num_contracted, weight.ndim), *range(num_contracted))
        return cls(jnp.transpose(weight, order), num_contracted)

    @classmethod
    def join(cls, leaves: Sequence[TransposedWeight]) -> TransposedWeight:
        """Return weights with one contracted axis, of equal length, as one with one output axis."""
        flat = [leaf.weight.reshape(-1, leaf.weight.shape[-1]) for leaf in leaves]
        return cls(jnp.concatenate(flat), 1)

    def cut(self, begin: int, shape: tuple[int, ...]) -> TransposedWeight:
        """Return the weight of these output axes, which begins at a row of a joined one."""
        rows = self.weight[begin : begin + prod(shape)]
        return type(self)(rows.reshape(*shape, -1), 1)

    @property
    def out_axes(self) -> tuple[int, ...]:
        """The lengths of the output axes."""
        return self.weight.shape[: self.weight.ndim - self.num_contracted]

    def untransposed(self) -> Array:
        """Return the weight with its contracted axes first again."""
        count = len(self.out_axes)
        return jnp.transpose(self.weight, (*range(count, self.weight.ndim), *range(count)))

    def contract(self, equation: str, x: Float[Array, "..."], dtype: str) -> Array:
        """Return einsum(equation, x, the untransposed weight)."""
        inputs, _, out = equation.partition("->")
        left, right = inputs.split(",")
        letters = right[self.num_contracted :] + right[: self.num_contracted]
        return contract(f"{left},{letters}->{out}", x, self.weight, dtype=dtype)
