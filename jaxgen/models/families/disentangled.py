"""Scores of positions apart from those of contents, as DeBERTa says them."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.quirks import Theirs, one_of
from jaxgen.models.families.rows import Row, linear, norm

TERMS = {"c2p": "query", "p2c": "key"}
KEYS = ("pos_att_type", "position_buckets", "max_relative_positions")


def _read(theirs: Theirs) -> dict[str, Any]:
    kinds, buckets, longest = (theirs[key] for key in KEYS)
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds or []
    names = {name.strip() for name in kinds}
    if not names or not names <= set(TERMS):
        raise CheckpointError(f"pos_att_type={theirs['pos_att_type']!r:.60}: known are c2p and p2c")
    return {
        "disentangled.terms": [ours for name, ours in TERMS.items() if name in names],
        "disentangled.buckets": buckets if buckets > 0 else None,
        "disentangled.distance": longest if longest > 0 else theirs["max_position_embeddings"],
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    own = config.disentangled
    names = [name for name, ours in TERMS.items() if ours in own.terms]
    return dict(zip(KEYS, ("|".join(names), own.buckets or -1, own.distance), strict=True))


QUIRKS = (
    Quirk(KEYS, _read, _write),
    one_of("disentangled.keys", "share_att_key", {True: "shared", False: "own"}),
    one_of("disentangled.norm", "norm_rel_ebd", {"layer_norm": "norm", "none": "none"}),
)
ROWS = (
    Row("deberta.encoder.rel_embeddings.weight", ("relative/vectors",), "R,D"),
    *norm("deberta.encoder.LayerNorm", "relative/norm"),
)
LAYER_ROWS = (
    *linear("attention.self.pos_query_proj", "attn/position_q", "NH,D"),
    *linear("attention.self.pos_key_proj", "attn/position_k", "NH,D"),
)
