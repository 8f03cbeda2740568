"""Cross-entropy over the vocabulary, whole for reference and in chunks for work."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.export import are_known
from jaxgen.mesh import constrain, gather, shards
from jaxgen.ops.attention import soft_cap
from jaxgen.ops.contract import cast, contract
from jaxgen.varying import scan, vary_alike


def cross_entropy(
    logits: Float[Array, "... V"], targets: Int[Array, "..."], *, smoothing: float, z: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return (loss, nll) per token, in nats and float32.

    `nll` is the plain negative log-likelihood. `loss` spreads `smoothing` of the target over the
    vocabulary (Szegedy et al. 2016) and adds z * logsumexp^2 (Mesh TensorFlow; PaLM 2022).
    """
    logits = logits.astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    nll = total - _picked(logits, targets)
    loss = nll
    if smoothing:  # the compiler keeps a sum over the vocabulary whose result is times zero
        loss = (1 - smoothing) * nll + smoothing * (total - jnp.mean(logits, axis=-1))
    return loss + z * total**2, nll


@jax.custom_jvp
def _picked(logits, targets):
    """The logit [...] of each target. Its gradient is no scatter, which would have to be written
    down before anything that follows it: a comparison is fused with the rest of the gradient.
    """
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


@_picked.defjvp
def _picked_jvp(primals, tangents):
    logits, targets = primals
    here = targets[..., None] == jnp.arange(logits.shape[-1])
    return _picked(logits, targets), jnp.sum(jnp.where(here, tangents[0], 0), axis=-1)


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
    gradient is taken chunk by chunk during the forward pass, while the logits are still there
    (Hsu et al. 2024, "Liger Kernel"), so nothing is computed twice. `nll` carries no gradient.
    """
    part = partial(_chunk_loss, cap=cap, smoothing=smoothing, z=z, dtype=dtype)
    # Each chunk takes positions from every device that shares the rows, so that none is idle.
    spread = shards("T") if hidden.shape[1] % shards("T") == 0 else 1
    cut = (even(hidden.shape[1] // spread, -(-chunk // spread)), spread)
    whole = gather(table, "VD", hidden.shape[-1])
    return _chunked(part, cut, dtype, *vary_alike((hidden, whole, targets, weights)))


def even(length: Any, most: int) -> Any:
    """Return the length of parts, `most` at most, that cut a length in as few as there must be.

    The last part is padded: parts of `most` would multiply up to twice the positions there are.
    A length that is a symbol stays whole.
    """
    if not are_known(length):
        return length
    return -(-length // -(-length // most))


def _chunk_loss(hidden, table, targets, weights, *, cap, smoothing, z, dtype):
    logits = unembed(hidden, table, cap=cap, dtype=dtype)
    loss, nll = cross_entropy(logits, targets, smoothing=smoothing, z=z)
    # A weight of zero also silences a non-finite loss: padding must not poison the sum.
    return jnp.sum(jnp.where(weights > 0, loss * weights, 0.0)), nll


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(part, cut, dtype, hidden, table, targets, weights):
    table = cast(table, dtype=dtype)  # once, not for each chunk

    def body(total, xs):
        loss, nll = part(xs[0], table, *xs[1:])
        return total + loss, nll

    xs = tuple(_split(x, cut) for x in (hidden, targets, weights))
    total, nll = scan(body, jnp.zeros((), jnp.float32), xs)
    return total, _join(nll, cut, hidden.shape[1])


def _chunked_forward(part, cut, dtype, hidden, table, targets, weights):
    once = cast(table, dtype=dtype)

    def body(carry, xs):
        total, table_grad = carry
        h, *rest = xs
        loss, pull, nll = jax.vjp(lambda h, t: part(h, t, *rest), h, once, has_aux=True)
        h_grad, t_grad = pull(jnp.ones_like(loss))
        return (total + loss, jax.tree.map(jnp.add, table_grad, t_grad)), (nll, h_grad)

    xs = tuple(_split(x, cut) for x in (hidden, targets, weights))
    start = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, table))
    (total, table_grad), (nll, h_grad) = scan(body, start, xs)
    length = hidden.shape[1]
    return (total, _join(nll, cut, length)), (_join(h_grad, cut, length), table_grad)


def _chunked_backward(part, cut, dtype, grads, cotangents):
    scale = cotangents[0]
    hidden_grad, table_grad = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    return hidden_grad, table_grad, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
