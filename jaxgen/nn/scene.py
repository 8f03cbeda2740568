"""What every layer sees besides the residual stream; the same for all of them."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxgen.ops.masks import Sight
from jaxgen.ops.memory import Memory


class Scene(NamedTuple):
    """Positions, who sees whom, and what an encoder has left.

    sights: who sees whom, one for each kind of the layer pattern. bias: [B, N, T, S], added to
    scores. memory: None also where the cache holds its keys already; cross: who sees what of it.
    """

    positions: jax.Array
    sights: tuple[Sight, ...]
    bias: jax.Array | None = None
    memory: Memory | None = None
    cross: Sight | None = None
