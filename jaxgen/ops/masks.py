"""Who may look at whom, as booleans from positions and segments."""

from __future__ import annotations

from jaxtyping import Array, Bool, Int


def visible(
    query: Int[Array, "B T"],
    key: Int[Array, "#B S"],
    *,
    window: int | None,
    query_segments: Int[Array, "B T"] | None = None,
    key_segments: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B T S"]:
    """Return True where a query position may attend to a key position.

    Causal by position; inside the last `window` positions (the query's own included) if given;
    inside one segment if segments are given, which keeps packed documents apart.
    """
    distance = query[:, :, None] - key[:, None, :]
    mask = distance >= 0
    if window is not None:
        mask &= distance < window
    if query_segments is not None and key_segments is not None:
        mask &= query_segments[:, :, None] == key_segments[:, None, :]
    return mask
