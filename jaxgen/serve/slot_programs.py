"""Jitted programs over slots: rows of one cache that are read, joined and decoded.

Parameters are as returned by `serving.ready`; what is donated is replaced by the result.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from jaxgen.config import ModelConfig
from jaxgen.decoding.detailed import Decoded, decode_detailed
from jaxgen.decoding.drafts import lookup
from jaxgen.models import api, serving
from jaxgen.ops.cache import Cache, Store
from jaxgen.ops.kv_buffer import KVBuffer
from jaxgen.text.model_steps import MultiTokenStep, model_step

ROW, SLOT = 1, 3  # axes of a cache's arrays: L B K S H, or L B K S


class SlotRows(NamedTuple):
    """The rows of a chunk, on the host.

    tokens: [B, S] prompts and draws, of which the first `lengths` [B] are known; start: [B] draws
    among them; limits: [B], 0 of an empty row; stops: [B, E]; keys: [B, 2] words of each key.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    start: np.ndarray
    limits: np.ndarray
    stops: np.ndarray
    keys: np.ndarray


@partial(jax.jit, static_argnames=("config", "rows", "capacity", "store", "unrolled"))
def empty_rows(
    config: ModelConfig, rows: int, capacity: int, store: Store, unrolled: bool
) -> Cache:
    """Return a cache of empty rows."""
    return api.empty_cache(config, rows, capacity, store=store, unrolled=unrolled)


@partial(jax.jit, static_argnames="config", donate_argnames="row")
def read_piece(params: api.Params, config: ModelConfig, row: Cache, tokens, count) -> Cache:
    """Return a row after the first `count` [1] of the tokens [1, T]."""
    cache = api.hidden(params, config, tokens, cache=row.with_valid_lengths(count)).cache
    assert cache is not None
    return cache


@partial(
    jax.jit,
    static_argnames=("config", "num_ids", "length", "top", "ahead"),
    donate_argnames="cache",
)
def decode_rows(
    params: api.Params,
    config: ModelConfig,
    num_ids: int,
    cache: Cache,
    rows: SlotRows,
    sample: Any,
    states: tuple[Any, ...],
    wanted: Any,
    calls: Any,
    *,
    length: int,
    top: int,
    ahead: int,
) -> tuple[Decoded, Cache]:
    """Return the new tokens of every row after up to `calls` steps of `length`, and the cache.

    A row whose text has ended writes on into slots past its length, which nobody sees. ahead: how
    many guesses of a lookup a step reads; 0: none.
    """
    lengths = jnp.asarray(rows.lengths)
    cache = replace(cache, length=lengths - 1)  # the loop reads the last token itself
    first = jnp.take_along_axis(jnp.asarray(rows.tokens), lengths[:, None] - 1, axis=1)[:, 0]
    keys = jax.random.wrap_key_data(jnp.asarray(rows.keys), impl="threefry2x32")
    reads = MultiTokenStep(serving.unroll(params, config), config, num_ids)
    found = decode_detailed(
        reads if ahead else model_step(params, config, num_ids),
        *(cache, first, keys, sample, length),
        top=top,
        stop=rows.stops,
        start=rows.start,
        limit=rows.limits,
        prompt=rows.tokens,
        lengths=rows.lengths,
        states=states,
        wanted=wanted,
        calls=calls,
        draft=lookup(ahead) if ahead else None,
    )
    return found._replace(cache=None), found.cache


@partial(jax.jit, donate_argnames="cache")
def put_row(cache: Cache, row: Cache, at) -> Cache:
    """Return the cache with a row of no more slots in the place of row `at`."""

    def put(x: Array, new: Array) -> Array:
        begin = (0, at, *[0] * (x.ndim - 2))
        return lax.dynamic_update_slice(x, new, begin) if x.ndim > 1 else x

    return jax.tree.map(put, cache, replace(row, num_valid=cache.num_valid))


@jax.jit
def take_row(cache: Cache, at) -> Cache:
    """Return one row of a cache."""
    axes = jax.tree.map(lambda x: ROW if x.ndim > 1 else 0, cache)
    return jax.tree.map(lambda x, axis: lax.dynamic_slice_in_dim(x, at, 1, axis), cache, axes)


@partial(jax.jit, static_argnames="capacity")
def fit_row(row: Cache, capacity: int) -> Cache:
    """Return a row with other slots: fewer, or more that hold nothing yet."""

    def fit(x: Array) -> Array:
        more = capacity - x.shape[SLOT]
        if more <= 0:
            return x[:, :, :, :capacity]
        return jnp.pad(x, [(0, more if axis == SLOT else 0) for axis in range(x.ndim)])

    sliding = row.sliding if row.is_ring else jax.tree.map(fit, row.sliding)
    return replace(row, full=jax.tree.map(fit, row.full), sliding=sliding)


@partial(jax.jit, donate_argnames="pool")
def save_blocks(pool: KVBuffer, cache: Cache, at, begins, blocks, count) -> KVBuffer:
    """Return a pool of blocks with the first `count` of these blocks copied from row `at`.

    begins, blocks: [M] first slot of each in the row, and its place in the pool.
    """

    def one(i, pool: KVBuffer) -> KVBuffer:
        def copy(blocks_of: Array, x: Array) -> Array:
            rest = x.ndim - 4
            sizes = (x.shape[0], 1, x.shape[2], blocks_of.shape[SLOT], *x.shape[4:])
            piece = lax.dynamic_slice(x, (0, at, 0, begins[i], *[0] * rest), sizes)
            return lax.dynamic_update_slice(blocks_of, piece, (0, blocks[i], 0, 0, *[0] * rest))

        return jax.tree.map(copy, pool, cache.full)

    return lax.fori_loop(0, count, one, pool)


@partial(jax.jit, donate_argnames="row")
def load_blocks(row: Cache, pool: KVBuffer, blocks, count) -> Cache:
    """Return a row that begins with the first `count` of these blocks of a pool."""

    def one(i, full: KVBuffer) -> KVBuffer:
        def copy(x: Array, blocks_of: Array) -> Array:
            size, rest = blocks_of.shape[SLOT], x.ndim - 4
            piece = lax.dynamic_slice_in_dim(blocks_of, blocks[i], 1, ROW)
            return lax.dynamic_update_slice(x, piece, (0, 0, 0, i * size, *[0] * rest))

        return jax.tree.map(copy, full, pool)

    assert row.full is not None
    size = jax.tree.leaves(pool)[0].shape[SLOT]
    full = lax.fori_loop(0, count, one, row.full)
    return replace(row, full=full, length=jnp.full_like(row.length, count * size))
