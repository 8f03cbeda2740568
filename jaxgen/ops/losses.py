"""Cross-entropy over the vocabulary, plain for reference and in chunks for training."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.export import are_known
from jaxgen.mesh import constrain, gather, shards
from jaxgen.mesh.place import per_row
from jaxgen.ops.attention import soft_cap
from jaxgen.ops.contract import cast, contract
from jaxgen.varying import scan, vary_alike

# As a target: nothing is predicted there. The signs of PyTorch and transformers, and of nanoGPT.
IGNORED = (-100, -1)


def cross_entropy(
    logits: Float[Array, "... V"], targets: Int[Array, "..."], *, smoothing: float, z: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return (loss, nll) per token, in nats and float32.

    `nll` is the plain negative log-likelihood. `loss` spreads `smoothing` of the target over the
    vocabulary (Szegedy et al. 2016) and adds z * logsumexp^2 (Mesh TensorFlow; PaLM 2022). Both
    are 0 where a target is ignored, and NaN where it is any other id outside the vocabulary.
    """
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    nll = total - _target_logits(logits, targets)
    loss = nll
    if smoothing:  # the compiler keeps a sum over the vocabulary whose result is times zero
        loss = (1 - smoothing) * nll + smoothing * (total - jnp.mean(logits, axis=-1))
    ignored = is_ignored(targets)
    return jnp.where(ignored, 0.0, loss + z * total**2), jnp.where(ignored, 0.0, nll)


def is_ignored(targets: Any) -> Any:
    """Return where an array of targets is one of IGNORED."""
    return (targets == IGNORED[0]) | (targets == IGNORED[1])


def scale_by_weights(
    values: Float[Array, "..."], weights: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return values * weights; a weight of 0 silences a value that is not finite.

    Padding must not poison a sum. Everywhere else the derivatives are those of the product.
    """
    return weights * jnp.where((weights == 0) & ~jnp.isfinite(values), 0.0, values)


@jax.custom_jvp
def _target_logits(logits, targets):
    """The logit [...] of each target. Its gradient is no scatter, which would have to be written
    down before anything that follows it: a comparison is fused with the rest of the gradient.
    An id outside the vocabulary has NaN: a negative one would count from its end.
    """
    places = jnp.where(targets < 0, logits.shape[-1], targets)[..., None]
    return jnp.take_along_axis(logits, places, axis=-1, mode="fill")[..., 0]


@_target_logits.defjvp
def _target_logits_jvp(primals, tangents):
    logits, targets = primals
    ids = jnp.arange(logits.shape[-1], dtype=targets.dtype)
    here = targets[..., None] == ids.reshape((1,) * targets.ndim + (-1,))
    return _target_logits(logits, targets), jnp.sum(jnp.where(here, tangents[0], 0), axis=-1)


def unembed(
    hidden: Float[Array, "B T D"], table: Any, *, cap: float | None, dtype: str
) -> Float[Array, "B T V"]:
    """Return float32 logits: hidden times the [V, D] table, soft-capped."""
    logits = constrain(contract("BTD,VD->BTV", hidden, table, dtype=dtype), "BTV")
    return soft_cap(logits.astype(jnp.float32), cap)


def vocabulary_loss(
    hidden: Float[Array, "B T D"],
    table: Any,
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    cap: float | None,
    smoothing: float,
    z: float,
    chunk: int,
    dtype: str,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Return (sum of weighted losses, nll per token) without ever holding all logits.

    Works on at most `chunk` positions of all rows at a time: so many logits exist at once. The
    gradient of the sum is taken chunk by chunk during the forward pass, while the logits are still
    there (Hsu et al. 2024, "Liger Kernel"), so nothing is computed twice. The gradient of `nll`,
    whose cotangents come later, computes them again, and only where it is asked for. Both are
    exact with respect to hidden, table and weights, of either sign, in forward mode as well.
    """
    part = partial(_chunk_loss, cap=cap, smoothing=smoothing, z=z, dtype=dtype)
    width, parts = hidden.shape[-1], shards("T")

    def loss(chunk, hidden, table, targets, weights):
        # Each chunk takes positions from every device that shares the rows, so that none is idle.
        spread = shards("T") if hidden.shape[1] % shards("T") == 0 else 1
        cut = (even(hidden.shape[1] // spread, -(-chunk // spread)), spread)
        args = vary_alike((hidden, gather(table, "VD", width), targets, weights))
        return _chunked(part, cut, dtype, *args)

    args = (hidden, table, targets, weights.astype(jnp.float32))
    # Each device sums the table's gradient over its own positions, and the devices once.
    mapped = per_row(partial(loss, -(-chunk // parts)), args, ("BTD", "VD", "BT", "BT"))
    return loss(chunk, *args) if mapped is None else mapped


def even(length: Any, most: int) -> Any:
    """Return the length of parts, `most` at most, that cut a length in as few as there must be.

    The last part is padded: parts of `most` would multiply up to twice the positions there are.
    A length that is a symbol stays whole.
    """
    if not are_known(length):
        return length
    return -(-length // -(-length // most))


def _chunk_loss(hidden, table, targets, weights, *, cap, smoothing, z, dtype):
    """Return (sum of weighted losses, (nll, loss) of each token)."""
    logits = unembed(hidden, table, cap=cap, dtype=dtype)
    loss, nll = cross_entropy(logits, targets, smoothing=smoothing, z=z)
    return jnp.sum(scale_by_weights(loss, weights)), (nll, loss)


def _split(x, cut):
    """[B, T, ...] -> [chunks, B, chunk * spread, ...] for cut = (chunk, spread).

    T is dealt out in `spread` equal stretches, each padded with zeros to a multiple of `chunk`.
    """
    chunk, spread = cut
    batch, length, *rest = x.shape
    x = x.reshape(batch, spread, length // spread, *rest)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % chunk)) + ((0, 0),) * len(rest))
    x = jnp.moveaxis(x.reshape(batch, spread, -1, chunk, *rest), 2, 0)
    return x.reshape(x.shape[0], batch, spread * chunk, *rest)


def _join(x, cut, length):
    """The inverse of `_split`."""
    chunk, spread = cut
    count, batch, _, *rest = x.shape
    x = jnp.moveaxis(x.reshape(count, batch, spread, chunk, *rest), 0, 2)
    x = x.reshape(batch, spread, count * chunk, *rest)[:, :, : length // spread]
    return x.reshape(batch, length, *rest)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _chunked(part, cut, dtype, hidden, table, targets, weights):
    table = cast(table, dtype=dtype)  # once, not for each chunk

    def body(total, xs):
        loss, (nll, _) = part(xs[0], table, *xs[1:])
        return total + loss, nll

    xs = tuple(_split(x, cut) for x in (hidden, targets, weights))
    total, nll = scan(body, jnp.zeros((), jnp.float32), xs)
    return total, _join(nll, cut, hidden.shape[1])


@partial(_chunked.defjvp, symbolic_zeros=True)
def _chunked_jvp(part, cut, dtype, primals, tangents):
    hidden, table, targets, weights = primals
    h_dot, table_dots, _, w_dot = tangents
    leaves, structure = jax.tree.flatten(cast(table, dtype=dtype))
    # Frozen tables and quantised integers have symbolic-zero tangents and need no gradient.
    dots = {i: dot for i, dot in enumerate(jax.tree.leaves(table_dots)) if _moves(dot)}
    h_dots = [h_dot] if _moves(h_dot) else []
    once = [leaves[i] for i in dots]
    xs = tuple(_split(x, cut) for x in (hidden, targets, weights))

    def losses(xs, hs, differentiated):
        h, *rest = xs
        at = dict(zip(dots, differentiated, strict=True))
        table = jax.tree.unflatten(structure, [at.get(i, x) for i, x in enumerate(leaves)])
        return part(hs[0] if hs else h, table, *rest)

    def gradient(carry, xs):
        total, sums = carry
        hs = [xs[0] for _ in h_dots]
        loss, pull, (nll, each) = jax.vjp(partial(losses, xs), hs, once, has_aux=True)
        h_grads, grads = pull(jnp.ones_like(loss))
        sums = [s + grad.astype(s.dtype) for s, grad in zip(sums, grads, strict=True)]
        return (total + loss, sums), (h_grads, nll, each if _moves(w_dot) else None)

    # Sums of bfloat16 stay in float32: with its eight bits they would stop growing.
    wide = [jnp.promote_types(dot.dtype, jnp.float32) for dot in dots.values()]
    zeros = [jnp.zeros(dot.shape, kind) for dot, kind in zip(dots.values(), wide, strict=True)]
    (total, grads), (h_grads, nll, each) = scan(gradient, (jnp.zeros((), jnp.float32), zeros), xs)
    join = partial(_join, cut=cut, length=hidden.shape[1])
    grads = [*map(join, h_grads), *grads]
    total_dot = sum(map(_inner, grads, [*h_dots, *dots.values()]), jnp.zeros((), jnp.float32))
    if _moves(w_dot):
        total_dot += jax.jvp(partial(scale_by_weights, join(each)), (weights,), (w_dot,))[1].sum()

    # Linear, and rematerialised where it is transposed: nothing is computed or saved before.
    @jax.checkpoint
    def tangent(_, xs):
        xs, *hs_dot = xs
        differentiated = [dot.astype(x.dtype) for dot, x in zip(wide_dots, once, strict=True)]
        nlls = lambda hs, differentiated: losses(xs, hs, differentiated)[1][0]  # noqa: E731
        return None, jax.jvp(nlls, ([xs[0] for _ in hs_dot], once), (hs_dot, differentiated))[1]

    wide_dots = [dot.astype(kind) for dot, kind in zip(dots.values(), wide, strict=True)]
    nll_dot = jnp.zeros_like(nll)
    if grads:
        nll_dot = scan(tangent, None, (xs, *(_split(dot, cut) for dot in h_dots)))[1]
    return (total, join(nll)), (total_dot, join(nll_dot))


def _moves(dot):
    return not isinstance(dot, jax.custom_derivatives.SymbolicZero)


def _inner(grad, dot):
    return jnp.sum(grad.astype(jnp.float32) * dot.astype(jnp.float32))
