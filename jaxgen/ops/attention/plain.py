"""Scaled dot-product attention with grouped heads, in plain operations: the formula itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxgen.ops import random
from jaxgen.ops.random import DropoutRng


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Return cap * tanh(x / cap), or x where cap is None (Gemma 2, 2024)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K W"],
    mask: Bool[Array, "#B T S"],
    *,
    scale: float,
    cap: float | None,
    bias: Float[Array, "#B N #T S"] | None = None,
    drop: DropoutRng | None = None,
    sinks: Float[Array, "N"] | None = None,
) -> Float[Array, "B T N W"]:
    """Return softmax(q k^T * scale + bias) v, computed in float32 inside (Vaswani et al. 2017).

    N / K query heads share one key/value head (Ainslie et al. 2023). `drop` says which of
    the probabilities stay. sinks: of each head, a score that takes a share of the probability and
    gives no value (OpenAI 2025, gpt-oss). A row that may see nothing averages all values, and means
    nothing.
    """
    probs = probabilities(q, k, mask, scale=scale, cap=cap, bias=bias, sinks=sinks)
    return weigh(probs if drop is None else random.dropout(probs, drop), v)


def probabilities(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    mask: Bool[Array, "#B T S"],
    *,
    scale: float,
    cap: float | None,
    bias: Float[Array, "#B N #T S"] | None = None,
    sinks: Float[Array, "N"] | None = None,
) -> Float[Array, "B K G T S"]:
    """Return how much each query gives to each key, float32, of the G heads of each key head."""
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32)
    scores = soft_cap(scores * scale, cap)
    if bias is not None:
        scores += bias.reshape(bias.shape[0], K, N // K, *bias.shape[2:])
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    nothing = sinks.astype(jnp.float32).reshape(1, K, N // K, 1, 1)
    nothing = jnp.broadcast_to(nothing, (*scores.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate([scores, nothing], axis=-1), axis=-1)[..., :-1]


def weigh(probs: Float[Array, "B K G T S"], v: Float[Array, "B S K W"]) -> Float[Array, "B T N W"]:
    """Return the values weighed by probabilities, head by head."""
    B, K, G, T, _ = probs.shape
    # Probabilities come first: einsum would take the values first, which on a CPU is ten times as
    # slow for a few queries.
    axes = (((4,), (1,)), ((0, 1), (0, 2)))
    out = lax.dot_general(probs.astype(v.dtype), v, axes)  # [B, K, G, T, H]
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, v.shape[-1])
