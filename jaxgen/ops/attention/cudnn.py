"""Attention on NVIDIA GPUs by cuDNN's flash attention, which never holds the scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxgen.mesh import place
from jaxgen.ops.attention.args import AttentionArgs
from jaxgen.ops.masks import same_segment

HALVES = (jnp.bfloat16, jnp.float16)  # the only dtypes it has
WIDEST = 128  # heads that every GPU since Ampere takes


def supports(args: AttentionArgs) -> bool:
    """Return whether cuDNN can: half precision, no cap, no bias, no dropout.

    On a mesh it works on whole rows and heads, as many keys' as queries', of whole sequences.
    """
    (B, T, N, H), (S, K) = args.q.shape, args.k.shape[1:3]
    plain = args.cap is None and args.bias is None and args.drop is None
    plain &= args.v.shape[-1] == H
    even = T % 2 == 0 and S % 2 == 0 and H % 8 == 0 and H <= WIDEST
    rows, queries, heads = (place.shards(letter) for letter in "BTN")
    divisible = queries == 1 and B % rows == 0 and N % heads == 0 and K % heads == 0
    return plain and even and divisible and args.q.dtype in HALVES


def attend(args: AttentionArgs) -> jax.Array:
    """Return attention [B, T, N, H] of arguments that it `supports`.

    cuDNN takes causality and windows as options, and skips what they hide; segments, which it does
    not take, come as a boolean mask [B, 1, T, S] for all heads, as does an unstructured mask.
    """
    mask, options, allowed = args.mask, {}, args.mask.allowed
    if mask.is_structured and (mask.window is None or mask.direction == "back"):
        window = None if mask.window is None else (mask.window - 1, 0)
        options = {"is_causal": mask.direction == "back", "local_window_size": window}
        allowed = None
        if mask.query_segments is not None:
            allowed = same_segment(mask.query_segments, mask.key_segments)
    return jax.nn.dot_product_attention(
        args.q,
        args.k,
        args.v,
        mask=None if allowed is None else allowed[:, None],
        scale=args.scale,
        implementation="cudnn",
        **options,
    )
