"""The arguments of one call of attention, as kernels take them."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxgen.ops.masks import AttentionMask
from jaxgen.ops.random import DropoutRng


class AttentionArgs(NamedTuple):
    """One call of `attend`; see there."""

    q: jax.Array  # [B, T, N, H]
    k: jax.Array  # [B, S, K, H]
    v: jax.Array  # [B, S, K, W]; W is H, but in latent attention
    mask: AttentionMask
    scale: float
    cap: float | None
    bias: jax.Array | None
    drop: DropoutRng | None
    sinks: jax.Array | None = None  # [N]
