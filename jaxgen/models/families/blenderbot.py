"""Blenderbot (Roller et al. 2020): BART normalised before, whose positions begin at row 0."""

from __future__ import annotations

from jaxgen.models.families import bart_kin
from jaxgen.models.families.family import Family

IGNORED = bart_kin.IGNORED | frozenset(
    "do_blenderbot_90_layernorm extra_layer_norm layernorm_variant variant".split()
)

FAMILY = Family(
    model_type="blenderbot",
    choices=bart_kin.CHOICES | {"positions": "learned", "norm_at": "pre"},
    defaults=bart_kin.DEFAULTS | {"max_position_embeddings": 128},
    rows=(*bart_kin.ROWS, *bart_kin.POSITIONS, *bart_kin.FINAL_NORMS),
    **bart_kin.SHARED
    | {"only": bart_kin.PRE_NORM | {"normalize_embedding": (False,)}, "ignored": IGNORED},
    **bart_kin.classes("Blenderbot"),
)
