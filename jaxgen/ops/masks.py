"""Who may look at whom, as booleans from positions and segments."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Direction = Literal["back", "both"]


def visible(
    query: Int[Array, "B T"],
    key: Int[Array, "#B S"],
    *,
    direction: Direction = "back",
    window: int | None,
    ahead: Bool[Array, "B S"] | None = None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """Return True where a query position may attend to a key position.

    back: causal by position, as decoders look; both: also ahead, as encoders do; ahead: keys that
    are seen from before them as well (a prefix: Raffel et al. 2020, figure 3). Less than `window`
    positions away if given; inside one segment if segments are given, which keeps packed
    documents, and padding, apart.
    """
    distance = query[:, :, None] - key[:, None, :]
    mask = distance >= 0 if direction == "back" else jnp.ones_like(distance, bool)
    if ahead is not None:
        mask |= ahead[:, None, :]
    if window is not None:
        mask &= jnp.abs(distance) < window
    if query_segments is not None and key_segments is not None:
        mask &= same_segment(query_segments, key_segments)
    return mask


def same_segment(query: Int[Array, "B T"], key: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
    """Return True where a query and a key belong to one document (or are both padding)."""
    return query[:, :, None] == key[:, None, :]
