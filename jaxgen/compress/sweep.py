"""Column after column, with the error of each made up for by those to come: GPTQ and SparseGPT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxgen.ops.grid import Grid, Steps, snap, steps

MOST = 128  # columns after which the rest of the matrix is brought up to date


@partial(jax.jit, static_argnames=("grid", "damping", "act_order"))
def gptq(
    w: Float[Array, "O I"],
    gram: Float[Array, "I I"],
    grid: Grid,
    *,
    damping: float,
    act_order: bool,
) -> tuple[Float[Array, "O I"], Steps]:
    """Return (numbers on the grid, its scales and zero points) that keep a matrix's outputs.

    Args:
        w: outputs by inputs.
        gram: X^T X of its inputs, [I, I].
        grid: of which its group divides I.
        damping: share of the gram's mean diagonal that is added to the diagonal.
        act_order: columns of large inputs first; groups then have the scales of the weight as it
            was, else as it is when its columns are reached.

    Frantar et al. 2023, as in IST-DASLab/gptq.
    """
    width = grid.group or w.shape[1]
    w, gram = _alive(w, gram)
    order = jnp.arange(w.shape[1])
    if act_order:
        order = jnp.argsort(-jnp.diag(gram), stable=True)
    first = steps(w, grid)
    dynamic = grid.group is not None and not act_order
    block = width if dynamic else block_width(w.shape[1])
    columns = Steps(*(x[:, order] for x in first.by_column(w.shape[1])))

    def begin(part: Array, diagonal: Array, index: Array) -> Steps:
        if dynamic:
            return steps(part, replace(grid, group=None)).by_column(block)
        return Steps(*(lax.dynamic_slice_in_dim(x, index * block, block, 1) for x in columns))

    def change(column: Array, at: Steps) -> Array:
        return snap(column, *at, grid)

    ordered = gram[order][:, order]
    numbers, states = _sweep(w[:, order], factor(ordered, damping), block, begin, change)
    if dynamic:  # [blocks, O, block] -> [O, blocks]
        first = Steps(*(jnp.moveaxis(x[..., 0], 0, 1) for x in states))
    return numbers[:, jnp.argsort(order)], first


@partial(jax.jit, static_argnames=("pattern", "sparsity", "damping"))
def sparsegpt(
    w: Float[Array, "O I"],
    gram: Float[Array, "I I"],
    *,
    pattern: tuple[int, int] | None,
    sparsity: float,
    damping: float,
) -> Float[Array, "O I"]:
    """Return a matrix with zeros whose other numbers make up for them.

    pattern: (zeros, of how many inputs in a row); None: the share `sparsity` of each block of 128
    columns. Frantar and Alistarh 2023, as in IST-DASLab/sparsegpt.
    """
    w, gram = _alive(w, gram)
    block = pattern[1] if pattern else block_width(w.shape[1])

    def begin(part: Array, diagonal: Array, index: Array) -> Array:
        scores = jnp.square(part / diagonal)
        if pattern:
            return rank_of(scores) >= pattern[0]
        ordered = jnp.sort(scores.reshape(-1))
        return scores > ordered[jnp.int32(scores.size * sparsity)]

    def change(column: Array, keep: Array) -> Array:
        return jnp.where(keep, column, 0.0)

    return _sweep(w, factor(gram, damping), block, begin, change)[0]


def rank_of(scores: Array) -> Array:
    """Return the place of each number of the last axis in ascending order."""
    return jnp.argsort(jnp.argsort(scores, axis=-1, stable=True), axis=-1)


def block_width(columns: int) -> int:
    """Return the largest divisor of a number of columns that is no more than 128."""
    return next(width for width in range(min(MOST, columns), 0, -1) if columns % width == 0)


def factor(gram: Float[Array, "I I"], damping: float) -> Float[Array, "I I"]:
    """Return the upper triangular U with U^T U = (gram + damping * mean diagonal * 1)^-1."""
    added = damping * jnp.mean(jnp.diag(gram))
    lower = jnp.linalg.cholesky(gram + added * jnp.eye(len(gram), dtype=gram.dtype))
    inverse = jax.scipy.linalg.cho_solve((lower, True), jnp.eye(len(gram), dtype=gram.dtype))
    return jnp.linalg.cholesky(inverse, upper=True)


def _alive(w: Array, gram: Array) -> tuple[Array, Array]:
    """Return both with columns that no input reaches at 0, and a gram that can be inverted."""
    dead = jnp.diag(gram) == 0
    return jnp.where(dead, 0.0, w), gram + jnp.diag(dead.astype(gram.dtype))


def _sweep(
    w: Array,
    upper: Array,
    block: int,
    begin: Callable[[Array, Array, Array], Any],
    change: Callable[[Array, Any], Array],
) -> tuple[Array, Any]:
    """Return (the matrix with each column changed in turn, what `begin` gave of each block).

    begin: (block [O, block], its part of U's diagonal, its number) -> state, arrays [O, block];
    change: (column [O], its part of the state) -> new column.
    """
    later = jnp.arange(w.shape[1])

    def of_block(w: Array, index: Array) -> tuple[Array, tuple[Array, Any]]:
        start = index * block
        part = lax.dynamic_slice_in_dim(w, start, block, 1)
        rows = lax.dynamic_slice_in_dim(upper, start, block, 0)
        inside = lax.dynamic_slice_in_dim(rows, start, block, 1)
        state = begin(part, jnp.diag(inside), index)

        def of_column(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            part, numbers, errors = carry
            column = lax.dynamic_index_in_dim(part, i, 1, keepdims=False)
            at = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 1, keepdims=False), state)
            new = change(column, at)
            error = (column - new) / inside[i, i]
            part = part - jnp.outer(error, inside[i])
            numbers = lax.dynamic_update_index_in_dim(numbers, new, i, 1)
            return part, numbers, lax.dynamic_update_index_in_dim(errors, error, i, 1)

        nothing = jnp.zeros_like(part)
        _, numbers, errors = lax.fori_loop(0, block, of_column, (part, nothing, nothing))
        w = w - errors @ jnp.where(later >= start + block, rows, 0.0)
        return w, (numbers, state)

    _, (numbers, states) = lax.scan(of_block, w, jnp.arange(w.shape[1] // block))
    return jnp.moveaxis(numbers, 0, 1).reshape(w.shape), states
