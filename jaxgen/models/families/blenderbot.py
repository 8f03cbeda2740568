"""Blenderbot (Roller et al. 2020): BART normalised before, whose positions begin at row 0."""

from __future__ import annotations

from jaxgen.models.families import bart
from jaxgen.models.families.family import Family

IGNORED = bart.IGNORED | frozenset(
    "do_blenderbot_90_layernorm extra_layer_norm layernorm_variant variant".split()
)

FAMILY = Family(
    model_type="blenderbot",
    choices=bart.CHOICES | {"positions": "learned", "norm_at": "pre"},
    defaults=bart.DEFAULTS | {"max_position_embeddings": 128},
    rows=(*bart.ROWS, *bart.POSITIONS, *bart.FINAL_NORMS),
    **bart.SHARED | {"only": bart.PRE_NORM | {"normalize_embedding": (False,)}, "ignored": IGNORED},
    **bart.classes("Blenderbot"),
)
