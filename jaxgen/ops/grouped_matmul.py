"""Matmuls of groups of rows, each with a weight of its own: what the experts of a layer compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.derivatives import custom_vjp
from jaxgen.export import are_known
from jaxgen.mesh.place import platform
from jaxgen.ops import cpu
from jaxgen.ops.contract import contract, product, weight_gradient
from jaxgen.varying import fori_loop

# Rows of a block, and how many must be left for one. A large block reads the weight less often, a
# small one wastes less.
GPU_BLOCKS = ((1024, 1024), (128, 1))
# On a CPU a second block costs about as much as 35 rows, for the weight is laid out anew. So what a
# largest block leaves of a group is one block, in eighths of a mean group: finest around the mean,
# where even groups are, and no more sizes than that, for each is compiled.
CPU_EIGHTHS = (16, 12, 9, 8, 6, 4)
CPU_LEAST = 32
ROWS = ((1, 1),)


def grouped_matmul(
    x: Float[Array, "R I"], w: Any, sizes: Int[Array, "E"], *, dtype: str
) -> Float[Array, "R O"]:
    """Return each row of x times the weight of its group.

    `jax.lax.ragged_dot` on a CPU or a GPU multiplies every row with every weight (jaxlib 0.10: 8
    times the work of 8 groups). So there a loop over blocks of rows, each of one group, computes
    what is asked for and no more than the rest of each group's last block; of a few rows, each is a
    block, which reads the weights it needs and copies none.

    Args:
        x: rows, those of group 0 first, then those of group 1, and so on.
        w: [E, I, O], or a leaf with `.contract` whose arrays have a leading axis E.
        sizes: rows of each group. Rows after the last group give 0.
        dtype: of the matmuls and the result.
    """
    if hasattr(w, "contract"):

        def one(x: Array, leaf: Any) -> Array:
            return contract("BTD,DF->BTF", x[None], leaf, dtype=dtype)[0]

        return _by_blocks(one, x.astype(dtype), w, sizes)
    x, w = x.astype(dtype), w.astype(dtype)
    if platform() == "gpu" or cpu.enabled("grouped_matmul"):
        return _blocked(x, w, sizes)
    return lax.ragged_dot(x, w, sizes)


@custom_vjp
def _blocked(x: Array, w: Array, sizes: Array) -> Array:
    return _forward(x, w, sizes)


def _forward(x: Array, w: Array, sizes: Array) -> Array:
    return _by_blocks(lambda x, w: product("TD,DF->TF", x, w), x, w, sizes)


def _backward(args: Any, _: tuple[()], grad: Array) -> tuple[Array, Array, None]:
    x, w, sizes = args
    x_grad = _by_blocks(lambda g, w: product("TF,DF->TD", g, w), grad, w, sizes)
    return x_grad, _weight_gradients(x, grad, sizes).astype(w.dtype), None


_blocked.defvjp(lambda *args: (_forward(*args), ()), _backward)


def _by_blocks(
    one: Callable[[Array, Any], Array], x: Array, w: Any, sizes: Array
) -> Float[Array, "R O"]:
    """Return one(rows of x, the weight of their group) for all groups."""
    ends = jnp.cumsum(sizes)
    weight = lambda e: jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, e, 0, False), w)  # noqa: E731
    shape = jax.eval_shape(lambda: one(x[:1], weight(0)))
    zeros = jnp.zeros((x.shape[0], shape.shape[1]), shape.dtype)
    blocks = _block_sizes(x, sizes)
    if blocks == ROWS:

        def row(r: Array, out: Array) -> Array:
            e = jnp.sum(ends <= r)
            y = one(lax.dynamic_slice_in_dim(x, r, 1), weight(e))
            return lax.dynamic_update_slice_in_dim(out, y, r, 0)

        return fori_loop(0, ends[-1], row, zeros)

    def group(e: Array, out: Array) -> Array:
        own = weight(e)  # outside of the loop over blocks, which would copy it for each

        def block(rows: int, begin: Array, i: Array, out: Array) -> Array:
            first, mine = _rows(begin + i * rows, rows, x.shape[0], ends[e])
            y = one(lax.dynamic_slice_in_dim(x, first, rows), own)
            before = lax.dynamic_slice_in_dim(out, first, rows)
            y = jnp.where(mine[:, None], y, before)
            return lax.dynamic_update_slice_in_dim(out, y, first, 0)

        return _over_blocks(block, blocks, ends[e] - sizes[e], sizes[e], out)

    return _over_groups(group, sizes, zeros)


def _weight_gradients(x: Array, grad: Array, sizes: Array) -> Float[Array, "E I O"]:
    """Return x^T grad of each group, summed in float32."""
    ends, blocks = jnp.cumsum(sizes), _block_sizes(x, sizes)
    if blocks == ROWS and are_known(x.shape[0]):
        blocks = ((min(CPU_LEAST, x.shape[0]), 1),)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    shape = (x.shape[1], grad.shape[1])

    def group(e: Array, out: Array) -> Array:
        def block(rows: int, begin: Array, i: Array, total: Array) -> Array:
            first, mine = _rows(begin + i * rows, rows, x.shape[0], ends[e])
            part = jnp.where(mine[:, None], lax.dynamic_slice_in_dim(x, first, rows), 0)
            return total + weight_gradient(part, lax.dynamic_slice_in_dim(grad, first, rows))

        total = jnp.zeros(shape, wide)
        total = _over_blocks(block, blocks, ends[e] - sizes[e], sizes[e], total)
        return lax.dynamic_update_index_in_dim(out, total.astype(out.dtype), e, 0)

    return _over_groups(group, sizes, jnp.zeros((sizes.shape[0], *shape), x.dtype))


def _over_groups(group: Callable[[Array, Array], Array], sizes: Array, out: Array) -> Array:
    """Return out after group(e, out) of each group that has rows."""
    order = jnp.argsort(sizes == 0, stable=True)
    return fori_loop(0, jnp.sum(sizes > 0), lambda i, out: group(order[i], out), out)


def _over_blocks(
    block: Callable[..., Array],
    blocks: tuple[tuple[int, int], ...],
    begin: Array,
    size: Array,
    out: Array,
) -> Array:
    """Return out after block(rows, begin, i, out) of all blocks of a group, the largest first.

    As many of each as there are rows for; the last of all may reach beyond the group.
    """
    for rows, least in blocks:
        count = jnp.maximum(size + rows - least, 0) // rows
        out = fori_loop(0, count, partial(block, rows, begin), out)
        begin, size = begin + count * rows, size - count * rows
    return out


def _rows(wanted: Array, rows: int, count: int, end: Array) -> tuple[Array, Array]:
    """Return where a block begins, and which of its rows are its own.

    Where it would reach beyond the last row of all it begins earlier, and leaves alone what is
    before its own.
    """
    first = jnp.minimum(wanted, count - rows)
    place = first + jnp.arange(rows)
    return first, (place >= wanted) & (place < end)


def _block_sizes(x: Array, sizes: Array) -> tuple[tuple[int, int], ...]:
    """Return (rows of a block, how many must be left for it), the largest first.

    `ROWS` where there are few rows, or nobody knows how many. None is larger than all rows.
    """
    count, groups = x.shape[0], sizes.shape[0]
    if not are_known(count) or count <= 2 * groups:
        return ROWS
    mean = count // groups
    if platform() == "gpu":
        fit = tuple(block for block in GPU_BLOCKS if block[0] <= mean)
        return fit or ((min(GPU_BLOCKS[-1][0], count), 1),)
    if mean < 2 * CPU_LEAST:
        return ((min(CPU_LEAST, count), 1),)
    rows = sorted({min(ceil(count * n / (groups * 32)) * 4, count) for n in CPU_EIGHTHS})
    return tuple(zip(rows, (1, *(n + 1 for n in rows)), strict=False))[::-1]
