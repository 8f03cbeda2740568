"""Attention on CPUs, block by block of queries.

Scores exist for a few rows at a time: memory grows with the length and not with its square, and
rows under a causal mask or a window stop at the last key that they see. The backward pass makes
the scores again from two numbers a row (Rabe and Staats 2021; Dao et al. 2022), and the dropout
mask again from the indices of its elements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxgen.derivatives import custom_vjp
from jaxgen.mesh import shards
from jaxgen.ops.attention.args import AttentionArgs
from jaxgen.ops.cpu import enabled
from jaxgen.ops.cpu.threefry import flat_index, keep_at
from jaxgen.ops.masks import AttentionMask
from jaxgen.ops.random import is_indexable
from jaxgen.varying import scan

STRETCHES = 8  # compiled one after the other, each with the keys that its rows may see
NARROWEST, WIDEST = 64, 128  # rows of scores at once; the widest where none can skip a key
FEWEST = 8  # queries worth it; parameters are initialised with fewer, where no device is known
HIDDEN = jnp.finfo(jnp.float32).min


def supports(args: AttentionArgs) -> bool:
    """Return whether scores are plain and lie on one device: no cap or bias, no mesh."""
    if args.cap is not None or args.bias is not None or args.q.shape[1] < FEWEST:
        return False
    if args.drop is not None and not is_indexable(args.drop, _scores_of(args)):
        return False
    return shards("BTNKSH") == 1 and enabled("blocked_attention")


def _scores_of(args: AttentionArgs) -> tuple[int, ...]:
    """Return the shape of all scores of the whole batch."""
    rows = args.q.shape[0] if args.drop is None else args.drop.rows
    (_, T, N, _), (_, S, K, _) = args.q.shape, args.k.shape
    return rows, K, N // K, T, S


class Stretch(NamedTuple):
    """Rows `begin` to `end`, `rows` at a time, and the keys `first` to `last` that they may see."""

    begin: int
    end: int
    rows: int
    first: int
    last: int


def stretches(mask: AttentionMask, queries: int, keys: int) -> list[Stretch]:
    """Return the blocks of queries, and the keys that each needs."""
    skips = mask.order == "running" and (mask.direction == "back" or mask.window is not None)
    wide = max(-(-queries // STRETCHES), NARROWEST if skips else WIDEST)
    rows = min(wide, WIDEST)
    wide = -(-wide // rows) * rows
    blocks = []
    for begin in range(0, queries, wide):
        end = min(begin + wide, queries)
        # The last rows may be fewer than go at a time: they are a stretch of their own.
        even = begin + max((end - begin) // rows, 1) * rows if end - begin > rows else end
        for low, high in ((begin, even), (even, end)):
            if low < high:
                first, last = _visible_keys(mask, low, high, keys)
                blocks.append(Stretch(low, high, min(rows, high - low), first, last))
    return blocks


def _visible_keys(mask: AttentionMask, low: int, high: int, keys: int) -> tuple[int, int]:
    """Return the span of keys that rows low to high may see, given running positions."""
    if mask.order != "running":
        return 0, keys
    reach = keys if mask.window is None else mask.window - 1
    last = high if mask.direction == "back" else min(high + reach, keys)
    return max(low - reach, 0), last


def attend(args: AttentionArgs) -> jax.Array:
    """Return attention [B, T, N, H] of arguments that it `supports`."""
    B, T, N, H = args.q.shape
    S, K = args.k.shape[1:3]
    q = (args.q * jnp.asarray(args.scale, args.q.dtype)).reshape(B, T, K, N // K, H)
    q, k, v = q.transpose(0, 2, 3, 1, 4), args.k.swapaxes(1, 2), args.v.swapaxes(1, 2)
    plan = tuple(stretches(args.mask, T, S))
    rng = None
    if args.drop is not None:
        rng = RngArrays(
            jax.random.key_data(args.drop.key), jnp.asarray(args.drop.first, jnp.uint32)
        )
    keep = 1.0 if args.drop is None else args.drop.keep
    out: Any = _attend(plan, keep, q, k, v, args.mask, rng)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, v.shape[-1])


class RngArrays(NamedTuple):
    """The arrays of a `DropoutRng`."""

    key: Any  # UInt32[Array, "2"]
    first: Any  # UInt32[Array, ""]: the number of the first row in the whole batch


@partial(custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    plan: tuple[Stretch, ...],
    keep: float,
    q: Any,
    k: Any,
    v: Any,
    mask: AttentionMask,
    rng: RngArrays | None,
) -> Any:
    """q [B, K, G, T, H], k [B, K, S, H], v [B, K, S, W] -> [B, K, G, T, W]."""
    return _forward(plan, keep, q, k, v, mask, rng)[0]


def _forward(plan, keep, q, k, v, mask, rng):
    def part(stretch, begin):
        rows, keys = _rows(q, begin, stretch), k[:, :, stretch.first : stretch.last]
        scores = _scores(rows, keys, mask, stretch, begin)
        top = jnp.max(scores, axis=-1, keepdims=True)
        probs = jnp.exp(scores - top)
        share = 1 / jnp.sum(probs, axis=-1, keepdims=True)
        values = v[:, :, stretch.first : stretch.last]
        probs = _dropout(probs, keep, rng, (*q.shape, k.shape[2]), stretch, begin)
        out = _product(probs.astype(v.dtype), values, 3, 2) * share
        return _split_heads(out.astype(v.dtype), q), _split_heads(top, q), _split_heads(share, q)

    out, top, share = _over(plan, part, q)
    return out, (out, top, share)


def _backward(plan, keep, args, saved, grad):
    (q, k, v, mask, rng), (out, top, share) = args, saved
    dropped = partial(_dropout, keep=keep, rng=rng, sizes=(*q.shape, k.shape[2]))
    inner = jnp.sum(grad.astype(jnp.float32) * out, axis=-1, keepdims=True)
    # XLA on a CPU has no fast matmul that sums over rows of both factors: the narrower of each
    # pair, not the scores, is transposed, once per layer.
    turned_q, turned_grad = (jnp.moveaxis(x, -1, 2) for x in (q, grad))

    def part(stretch, begin):
        rows, grads, tops, shares, inners = (
            _rows(x, begin, stretch) for x in (q, grad, top, share, inner)
        )
        columns, grad_columns = (_columns(x, begin, stretch) for x in (turned_q, turned_grad))
        keys, values = (x[:, :, stretch.first : stretch.last] for x in (k, v))
        probs = jnp.exp(_scores(rows, keys, mask, stretch, begin) - tops) * shares
        to_probs = dropped(_product(grads, values, 3, 3), stretch=stretch, begin=begin)
        slope = (probs * (to_probs - inners)).astype(k.dtype)
        to_keys = _product(columns, slope, 3, 2)
        probs = dropped(probs, stretch=stretch, begin=begin)
        to_values = _product(grad_columns, probs.astype(v.dtype), 3, 2)
        return (_split_heads(_product(slope, keys, 3, 2), q),), (to_keys, to_values)

    zeros = tuple(jnp.zeros(x.swapaxes(2, 3).shape, jnp.float32) for x in (k, v))
    (to_queries,), (to_keys, to_values) = _over_and_sum(plan, part, zeros, q)
    # Without the barrier XLA would undo the transpose where there is one block, hence no sum.
    to_keys, to_values = (lax.optimization_barrier(x).swapaxes(2, 3) for x in (to_keys, to_values))
    same = (to_queries.astype(q.dtype), to_keys.astype(k.dtype), to_values.astype(v.dtype))
    return *same, None, None


_attend.defvjp(_forward, _backward)


def _over(plan: tuple[Stretch, ...], part: Callable, q: Any) -> Any:
    """Return the results of all rows, put together along T."""
    return _over_and_sum(plan, lambda *args: (part(*args), ()), (), q)[0]


def _over_and_sum(plan: tuple[Stretch, ...], part: Callable, sums: Any, q: Any) -> tuple[Any, Any]:
    """Return (results of all rows, sums [..., S] with what each part adds to the keys it sees).

    q: anything that differs from layer to layer. Masks are alike in all layers, so that JAX would
    take them out of a scan over layers, and hold those of all rows at once: T^2 of them.
    """
    outputs = []
    for stretch in plan:

        def body(sums, begin, stretch=stretch):
            out, more = part(stretch, begin)
            keys = slice(stretch.first, stretch.last)
            return tuple(s.at[..., keys].add(m) for s, m in zip(sums, more, strict=True)), out

        if stretch.end - stretch.begin == stretch.rows:
            sums, out = body(sums, stretch.begin)
        else:
            begins = jnp.arange(stretch.begin, stretch.end, stretch.rows)
            begins, _ = lax.optimization_barrier((begins, q))
            sums, blocks = scan(body, sums, begins)
            # [blocks, B, K, G, rows, H] -> [B, K, G, T, H]
            out = tuple(_concat_blocks(x) for x in blocks)
        outputs.append(out)
    return tuple(jnp.concatenate(x, axis=3) for x in zip(*outputs, strict=True)), sums


def _concat_blocks(blocks: Any) -> Any:
    blocks = jnp.moveaxis(blocks, 0, 3)
    return blocks.reshape(*blocks.shape[:3], -1, blocks.shape[-1])


def _rows(x: Any, begin: Any, stretch: Stretch) -> Any:
    """[B, K, G, T, X] -> [B, K, G * rows, X]: the rows from `begin` of all heads of a group."""
    rows = lax.dynamic_slice_in_dim(x, begin, stretch.rows, axis=3)
    return rows.reshape(*x.shape[:2], -1, x.shape[-1])


def _columns(x: Any, begin: Any, stretch: Stretch) -> Any:
    """[B, K, X, G, T] -> [B, K, X, G * rows]: the same for an array with rows last."""
    columns = lax.dynamic_slice_in_dim(x, begin, stretch.rows, axis=4)
    return columns.reshape(*x.shape[:3], -1)


def _split_heads(rows: Any, q: Any) -> Any:
    """The inverse: [B, K, G * rows, X] -> [B, K, G, rows, X]."""
    return rows.reshape(*q.shape[:3], -1, rows.shape[-1])


def _scores(rows: Any, keys: Any, mask: AttentionMask, stretch: Stretch, begin: Any) -> Any:
    """[B, K, G * rows, H], [B, K, S, H] -> [B, K, G * rows, S] float32; hidden: the least."""
    scores = _product(rows, keys, 3, 3)
    B, K, _, S = scores.shape
    allowed = _allowed(mask, stretch, begin)
    split = scores.reshape(B, K, -1, stretch.rows, S)
    return jnp.where(allowed[:, None, None], split, HIDDEN).reshape(scores.shape)


def _dropout(scores: Any, keep: float, rng: Any, sizes: Any, stretch: Stretch, begin: Any) -> Any:
    """Return [B, K, G * rows, S] with dropped elements zero and the others scaled up.

    An element is drawn by its index in [B, K, G, T, S], as if all of them were there at once;
    sizes: those of q, then S.
    """
    if rng is None:
        return scores
    B, K, G, T, _, S = sizes
    shape = (B, K, G, stretch.rows, stretch.last - stretch.first)
    starts = (rng.first, 0, 0, begin, stretch.first)
    keeps = keep_at(rng.key, keep, flat_index(starts, shape, (B, K, G, T, S))).reshape(scores.shape)
    return jnp.where(keeps, scores / keep, 0.0)


def _allowed(mask: AttentionMask, stretch: Stretch, begin: Any) -> Any:
    """Return which of its keys [1 or B, rows, S] the rows from `begin` may see."""
    _, _, rows, first, last = stretch
    if not mask.is_structured:
        part = lax.dynamic_slice_in_dim(mask.allowed, begin, rows, axis=1)
        return part[:, :, first:last]
    distance = begin + jnp.arange(rows)[:, None] - jnp.arange(first, last)[None]
    allowed = distance >= 0 if mask.direction == "back" else jnp.ones(distance.shape, bool)
    if mask.window is not None:
        allowed &= jnp.abs(distance) < mask.window
    allowed = allowed[None]
    if mask.query_segments is not None:
        queries = lax.dynamic_slice_in_dim(mask.query_segments, begin, rows, axis=1)
        allowed = allowed & (queries[:, :, None] == mask.key_segments[:, None, first:last])
    return allowed


def _product(x: Any, y: Any, left: int, right: int) -> Any:
    """Return the product over axis `left` of x and `right` of y, for each row and key head."""
    dims = (((left,), (right,)), ((0, 1), (0, 1)))
    return lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)
