"""Rows of int8 with a scale each, and their nearest: all compared, or the nearest lists alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgen.ops.int8 import LARGEST
from jaxgen.pytree import register_dataclass

BLOCK = 16384  # rows that are compared at once
SAMPLE, ROUNDS = 64, 8  # of k-means: rows a list that it looks at, and its iterations
FEW = 8192  # rows; fewer are compared all, so they get no lists
PROBES = 32  # lists of an inverted file that a query looks into


@register_dataclass
@dataclass(frozen=True)
class Rows:
    """Vectors [N, D] as codes * scales; the score of one is query . row - offset.

    offsets: 0 for inner products, half the square of the row for Euclidean distance. Rows lie list
    by list. ids: the number of each. centers [C, D], begins [C], sizes [C]: of the lists, empty for
    rows without; a long list is in pieces, which have one center. longest: rows of a list at most.
    """

    codes: Any
    scales: Any
    offsets: Any
    ids: Any
    centers: Any
    begins: Any
    sizes: Any
    longest: int = field(default=0, metadata={"static": True})


def quantize(vectors: Float[np.ndarray, "N D"]) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes int8 [N, D], scales float32 [N]) of vectors."""
    most = np.abs(vectors).max(axis=1, initial=0.0).astype(np.float32)
    scales = np.where(most > 0, most, 1).astype(np.float32) / LARGEST
    return np.round(vectors / scales[:, None]).astype(np.int8), scales


def arrange(codes: np.ndarray, scales: np.ndarray, *, euclidean: bool = False) -> Rows:
    """Return quantised vectors as `Rows`, with an inverted file where they are many.

    Args:
        codes: int8 [N, D]. scales: float32 [N].
        euclidean: whether the nearest are those of least distance, not of largest inner product.
    """
    count, width = codes.shape
    squares = np.zeros(count, np.float32)
    if euclidean:
        for start in range(0, count, BLOCK):
            part = slice(start, start + BLOCK)
            squares[part] = np.square(codes[part].astype(np.float32)).sum(axis=1)
        squares *= np.square(scales) / 2
    if count < FEW:
        none = np.zeros(0, np.int32)
        ids = np.arange(count, dtype=np.int32)
        return Rows(codes, scales, squares, ids, np.zeros((0, width), np.float32), none, none)
    centers = _k_means(codes, scales, round(2 * count**0.5))
    lists = np.concatenate([
        np.asarray(_assign(codes[at : at + BLOCK], scales[at : at + BLOCK], centers))
        for at in range(0, count, BLOCK)
    ])  # fmt: skip
    ids = np.argsort(lists, kind="stable").astype(np.int32)
    sizes = np.bincount(lists, minlength=len(centers))
    longest = 2 * count // len(centers)  # so that no query compares many more rows than others
    pieces = np.maximum(-(-sizes // longest), 1)
    which = np.repeat(np.arange(len(centers)), pieces)
    place = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = (np.cumsum(sizes) - sizes)[which] + place * longest
    held = np.clip(sizes[which] - place * longest, 0, longest)
    order = (codes[ids], scales[ids], squares[ids], ids, np.asarray(centers)[which])
    return Rows(*order, begins.astype(np.int32), held.astype(np.int32), int(held.max()))


def arrays_of(rows: Rows) -> dict[str, np.ndarray]:
    """Return the arrays of rows by name, as `rows_of` reads them."""
    return {name: np.asarray(x) for name, x in vars(rows).items() if name != "longest"}


def rows_of(arrays: Mapping[str, np.ndarray], longest: int) -> Rows:
    """Return the rows of named arrays, on the device."""
    names = [one.name for one in fields(Rows) if one.name != "longest"]
    return Rows(*(jnp.asarray(arrays[name]) for name in names), longest=longest)


def _k_means(codes: np.ndarray, scales: np.ndarray, count: int) -> Array:
    """Return the centers of rows, by Lloyd's iteration from rows drawn of them."""
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(len(codes), min(len(codes), count * SAMPLE), replace=False))
    sample = codes[chosen], scales[chosen]
    first = rng.choice(len(chosen), count, replace=False)
    centers = jnp.asarray(sample[0][first] * sample[1][first, None], jnp.float32)
    for _ in range(ROUNDS):
        totals, sizes = jnp.zeros_like(centers), jnp.zeros(count)
        for at in range(0, len(chosen), BLOCK):
            part = (x[at : at + BLOCK] for x in sample)
            totals, sizes = _add_up(*part, centers, totals, sizes)
        centers = jnp.where(sizes[:, None] > 0, totals / jnp.maximum(sizes, 1)[:, None], centers)
    return centers


@jax.jit
def _assign(codes: Any, scales: Any, centers: Array) -> Int[Array, "N"]:
    rows = codes.astype(jnp.float32) * scales[:, None]
    return jnp.argmax(rows @ centers.T - jnp.square(centers).sum(axis=1) / 2, axis=1)


@jax.jit
def _add_up(codes, scales, centers, totals, sizes) -> tuple[Array, Array]:
    nearest = _assign(codes, scales, centers)
    rows = codes.astype(jnp.float32) * scales[:, None]
    return totals.at[nearest].add(rows), sizes.at[nearest].add(1.0)


def nearest(
    rows: Rows,
    queries: Float[Array | np.ndarray, "Q D"],
    count: int,
    *,
    probes: int | None = PROBES,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Return (scores, ids) of the rows nearest to each query, the best first.

    Args:
        rows: what is searched.
        queries: float32 [Q, D].
        count: how many of each, static; there may be fewer in the lists that are looked into: the
            rest score -inf.
        probes: lists to look into, static; None compares all rows, as there are no lists.
    """
    if probes is None or not len(rows.centers):
        return _exact(rows, queries, min(count, len(rows.codes)))
    return _probe(rows, queries, min(count, len(rows.codes)), min(probes, len(rows.centers)))


@partial(jax.jit, static_argnames="count")
def _exact(rows: Rows, queries: Array, count: int) -> tuple[Array, Array]:
    total = len(rows.codes)
    size = min(BLOCK, total)

    def add(i, best):
        begin = jnp.minimum(i * size, total - size)
        codes, scales, offsets = (lax.dynamic_slice_in_dim(x, begin, size) for x in _values(rows))
        scores = _scores(codes, scales, offsets, queries)
        places = begin + jnp.arange(size)
        scores = jnp.where(places >= i * size, scores, -jnp.inf)  # the last block overlaps
        return _best(best, scores, jnp.broadcast_to(places, scores.shape), count)

    shape = (len(queries), count)
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    scores, places = lax.fori_loop(0, -(-total // size), add, start)
    return scores, jnp.asarray(rows.ids)[places]


@partial(jax.jit, static_argnames=("count", "probes"))
def _probe(rows: Rows, queries: Array, count: int, probes: int) -> tuple[Array, Array]:
    centers = jnp.asarray(rows.centers)
    _, lists = lax.top_k(queries @ centers.T - jnp.square(centers).sum(axis=1) / 2, probes)
    total, size = len(rows.codes), rows.longest

    def one(query_and_lists):
        query, numbers = query_and_lists

        def look(_, number):
            begin, held = jnp.asarray(rows.begins)[number], jnp.asarray(rows.sizes)[number]
            first = jnp.minimum(begin, total - size)
            codes, scales, offsets = (
                lax.dynamic_slice_in_dim(x, first, size) for x in _values(rows)
            )
            scores = _scores(codes, scales, offsets, query[None])[0]
            places = first + jnp.arange(size)
            inside = (places >= begin) & (places < begin + held)
            return None, (jnp.where(inside, scores, -jnp.inf), places)

        _, (scores, places) = lax.scan(look, None, numbers)
        missing = max(count - scores.size, 0)
        scores = jnp.pad(scores.reshape(-1), (0, missing), constant_values=-jnp.inf)
        scores, chosen = lax.top_k(scores, count)
        return scores, jnp.pad(places.reshape(-1), (0, missing))[chosen]

    scores, places = lax.map(one, (queries, lists))
    return scores, jnp.asarray(rows.ids)[places]


def _values(rows: Rows) -> tuple[Array, Array, Array]:
    return jnp.asarray(rows.codes), jnp.asarray(rows.scales), jnp.asarray(rows.offsets)


def _scores(codes: Array, scales: Array, offsets: Array, queries: Array) -> Float[Array, "Q S"]:
    products = jnp.matmul(queries, codes.astype(jnp.float32).T, precision=lax.Precision.HIGHEST)
    return products * scales - offsets


def _best(best: tuple[Array, Array], scores, places, count: int) -> tuple[Array, Array]:
    scores, chosen = lax.top_k(jnp.concatenate([best[0], scores], axis=1), count)
    places = jnp.concatenate([best[1], jnp.asarray(places, jnp.int32)], axis=1)
    return scores, jnp.take_along_axis(places, chosen, axis=1)
