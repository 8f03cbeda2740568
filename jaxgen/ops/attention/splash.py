"""Attention on TPU by JAX's splash kernel, which never holds the scores.

Blocks that a mask leaves empty are skipped (Dao et al. 2022, "FlashAttention"; JAX's
pallas.ops.tpu.splash_attention). The kernel is no XLA operation, so no compiler can spread it over
a mesh: each device runs it on its own rows, heads and queries.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxgen.mesh import place
from jaxgen.ops.attention.args import AttentionArgs

LANES = 128  # of a TPU's vector unit: what lengths must be a multiple of
BLOCKS = (512, 256, 128)  # queries or keys at a time: the first that divides the length


def supports(args: AttentionArgs) -> bool:
    """Return whether the kernel can: no bias, no dropout, a structured mask."""
    if args.bias is not None or args.drop is not None or not args.mask.is_structured:
        return False
    if not place.is_ruled():
        return False  # cut by hand, it would gather what is spread over an axis unknown to us
    (B, T, N, H), (S, K) = args.q.shape, args.k.shape[1:3]
    rows, queries, heads = (place.shards(letter) for letter in "BTN")
    if queries > 1 and args.mask.direction == "both" and args.mask.window is None:
        return False  # JAX cannot cut the table of a mask that hides nothing
    if args.v.shape[-1] != H:
        return False
    divisible = B % rows == 0 and N % heads == 0 and K % heads == 0
    return divisible and T % (queries * LANES) == 0 and S % LANES == 0


def attend(args: AttentionArgs) -> jax.Array:
    """Return attention [B, T, N, H] of arguments that it `supports`; interpreted without a TPU."""
    kernel, spec = _kernel(args)
    q = (args.q.astype(jnp.float32) * args.scale).astype(args.q.dtype)
    ids = args.mask.query_segments, args.mask.key_segments

    def own(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, *ids: Any) -> jax.Array:
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as tpu

        segments = None if ids[0] is None else tpu.SegmentIds(*ids)
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(jax.vmap(kernel)(*heads_first, segments), 1, 2)

    letters = ("BTNH", "BSKH", "BSKH", "BT", "BS")
    return place.alone(own, (q, args.k, args.v, *ids), letters, "BTNH", first=(kernel, spec))


def _kernel(args: AttentionArgs) -> tuple[Any, Any]:
    """Return the kernel for one device's heads, and how its tables are laid on the mesh."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as tpu
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, S = args.q.shape[1], args.k.shape[1]
    queries, heads = place.shards("T"), args.q.shape[2] // place.shards("N")
    back, window = args.mask.direction == "back", args.mask.window
    if window is not None:
        one = masks.LocalMask((T, S), (window - 1, 0 if back else window - 1), 0)
    else:
        one = (masks.CausalMask if back else masks.FullMask)((T, S))
    q, k = _block(T // queries), _block(S)
    kernel = tpu.make_splash_mha(
        masks.MultiHeadMask([one] * heads),
        block_sizes=tpu.BlockSizes(
            block_q=q,
            block_kv=k,
            block_q_dkv=q,
            block_kv_dkv=k,
            block_q_dq=q,
            block_kv_dq=k,
        ),
        head_shards=1,
        q_seq_shards=queries,
        attn_logits_soft_cap=args.cap,
        interpret=place.platform() != "tpu",
    )
    return kernel, kernel.manual_sharding_spec


def _block(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)
