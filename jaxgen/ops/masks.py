"""Attention masks from positions and segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxgen.pytree import register_dataclass

Direction = Literal["back", "both"]
Order = Literal["free", "running"]


@register_dataclass
@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query may attend to: as booleans, and as the structure that kernels take.

    order: "running" promises that positions rise by one from token to token of a segment, and that
    queries and keys are the same tokens; then distances along a row are distances in position.
    """

    allowed: Any  # Bool[Array, "#B T S"]; under jit not computed where only the structure is read
    query_segments: Any  # Int[Array, "B T"] | None
    key_segments: Any  # Int[Array, "B S"] | None
    direction: Direction = field(metadata={"static": True})
    window: int | None = field(metadata={"static": True})
    order: Order = field(metadata={"static": True})

    @property
    def is_structured(self) -> bool:
        """Whether direction, window and segments say all that `allowed` says."""
        return self.order == "running" or (self.direction == "both" and self.window is None)


def make_mask(
    query: Int[Array, "B T"],
    key: Int[Array, "#B S"],
    *,
    direction: Direction,
    window: int | None,
    chunk: int | None = None,
    prefix: Bool[Array, "B S"] | None,
    order: Order,
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
    ancestors: Bool[Array, "B T S"] | None = None,
    num_virtual: int = 0,
) -> AttentionMask:
    """Return the mask of query and key positions.

    direction, window, chunk, prefix and segments: see `visible`. ancestors: the only keys that a
    query may attend to, as in a tree of beams; None is all. num_virtual: keys at positions from 0
    that come before all others and belong to no segment.
    """
    allowed = visible(
        query,
        key,
        direction=direction,
        window=window,
        chunk=chunk,
        prefix=prefix,
        query_segments=query_segments,
        key_segments=key_segments,
    )
    if ancestors is not None:
        allowed &= ancestors
    if num_virtual:
        before = jnp.arange(num_virtual, dtype=query.dtype)[None]
        virtual = visible(query, before, direction=direction, window=window, chunk=chunk)
        virtual = jnp.broadcast_to(virtual, (*allowed.shape[:2], num_virtual))
        allowed, order = jnp.concatenate([virtual, allowed], axis=-1), "free"
        query_segments = key_segments = None
    # The structure has no word for a prefix, ancestors, chunks: kernels must read `allowed`.
    order = "running" if order == "running" and prefix is ancestors is chunk is None else "free"
    return AttentionMask(
        allowed, query_segments, key_segments, direction=direction, window=window, order=order
    )


def cross_mask(query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]) -> AttentionMask:
    """Return the mask of cross-attention: all of the other text, document by document."""
    allowed = same_segment(query_segments, key_segments)
    return AttentionMask(allowed, query_segments, key_segments, "both", None, "free")


def visible(
    query: Int[Array, "B T"],
    key: Int[Array, "#B S"],
    *,
    direction: Direction = "back",
    window: int | None,
    chunk: int | None = None,
    prefix: Bool[Array, "B S"] | None = None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """Return True where a query position may attend to a key position.

    direction: "back" is causal by position, as in decoders; "both" is bidirectional, as in
    encoders. prefix: keys that earlier queries attend to as well (Raffel et al. 2020, figure 3).
    window: only keys less than so many positions away. chunk: only keys of the same chunk of so
    many positions (Meta 2025, Llama 4). Segments: only keys of the query's own, which separates
    packed documents, and padding.
    """
    distance = query[:, :, None] - key[:, None, :]
    allowed = distance >= 0 if direction == "back" else jnp.ones_like(distance, bool)
    if prefix is not None:
        allowed |= prefix[:, None, :]
    if window is not None:
        allowed &= jnp.abs(distance) < window
    if chunk is not None:
        allowed &= query[:, :, None] // chunk == key[:, None, :] // chunk
    if query_segments is not None and key_segments is not None:
        allowed &= same_segment(query_segments, key_segments)
    return allowed


def same_segment(query: Int[Array, "B T"], key: Int[Array, "B S"]) -> Bool[Array, "B T S"]:
    """Return True where a query and a key belong to one document (or are both padding)."""
    return query[:, :, None] == key[:, None, :]
