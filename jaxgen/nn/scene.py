"""What every layer sees besides the residual stream; the same for all of them."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxgen.ops.memory import Memory


class Scene(NamedTuple):
    """Positions, who sees whom, and what an encoder has left.

    masks: one [B, T, S] for each kind of the layer pattern. bias: [B, N, T, S], added to scores.
    memory: None also where the cache holds its keys already; cross_mask: [B, T, S of memory].
    """

    positions: jax.Array
    masks: tuple[jax.Array, ...]
    bias: jax.Array | None = None
    memory: Memory | None = None
    cross_mask: jax.Array | None = None
