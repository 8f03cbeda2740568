"""Attention on NVIDIA GPUs by cuDNN's flash attention, which never holds the scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.ops.attention.case import Case

HALVES = (jnp.bfloat16, jnp.float16)  # the only dtypes it has
WIDEST = 128  # heads that every GPU since Ampere takes


def can(case: Case) -> bool:
    """Return whether cuDNN does a case: half precision, no cap, no bias, no dropout."""
    (_, T, _, H), S = case.q.shape, case.k.shape[1]
    plain = case.cap is None and case.bias is None and case.drop is None
    even = T % 2 == 0 and S % 2 == 0 and H % 8 == 0 and H <= WIDEST
    return plain and even and case.q.dtype in HALVES


def attend(case: Case) -> jax.Array:
    """Return attention [B, T, N, H] of a case that `can` approves.

    cuDNN knows order and windows by themselves; segments, which it does not know, come as a mask
    [B, 1, T, S] that all heads share.
    """
    sight = case.sight
    alone = (
        sight.told
        and sight.query_segments is None
        and (sight.window is None or sight.direction == "back")
    )
    options = {"scale": case.scale, "implementation": "cudnn"}
    if not alone:
        return jax.nn.dot_product_attention(
            case.q, case.k, case.v, mask=sight.mask[:, None], **options
        )
    window = None if sight.window is None else (sight.window - 1, 0)
    causal = sight.direction == "back"
    return jax.nn.dot_product_attention(
        case.q, case.k, case.v, is_causal=causal, local_window_size=window, **options
    )
