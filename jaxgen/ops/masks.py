"""Who may look at whom, as booleans from positions and segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Direction = Literal["back", "both"]
Order = Literal["free", "running"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sight:
    """Who may look at whom: as booleans, and in the words that a kernel can be told.

    order: "running" promises that positions rise by one from token to token of a segment, and that
    queries and keys are the same tokens; then distances along a row are distances in position.
    """

    mask: Any  # Bool[Array, "#B T S"]; what nobody reads is never computed
    query_segments: Any  # Int[Array, "B T"] | None
    key_segments: Any  # Int[Array, "B S"] | None
    direction: Direction = field(metadata={"static": True})
    window: int | None = field(metadata={"static": True})
    order: Order = field(metadata={"static": True})

    @property
    def told(self) -> bool:
        """Whether direction, window and segments say all that the mask says."""
        return self.order == "running" or (self.direction == "both" and self.window is None)


def sight(
    query: Int[Array, "B T"],
    key: Int[Array, "#B S"],
    *,
    direction: Direction,
    window: int | None,
    ahead: Bool[Array, "B S"] | None,
    order: Order,
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
    among: Bool[Array, "B T S"] | None = None,
) -> Sight:
    """Return who sees whom among query and key positions; see `visible`.

    among: the keys of which a query sees any at all; None is all.
    """
    segments = {"query_segments": query_segments, "key_segments": key_segments}
    mask = visible(query, key, direction=direction, window=window, ahead=ahead, **segments)
    if among is not None:
        mask &= among
    # What is seen ahead, or only among some keys, is in the mask alone.
    order = "free" if ahead is not None or among is not None else order
    return Sight(mask, **segments, direction=direction, window=window, order=order)


def across(query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]) -> Sight:
    """Return the sight from one text to all of another, document by document."""
    mask = same_segment(query_segments, key_segments)
    return Sight(mask, query_segments, key_segments, "both", None, "free")


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
