"""Pegasus (Zhang et al. 2020): Marian's waves, normalised before, and once more at the end."""

from __future__ import annotations

from jaxgen.models.families import bart_kin
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="pegasus",
    choices=bart_kin.CHOICES | {"positions": "sinusoid", "norm_at": "pre"},
    defaults=bart_kin.DEFAULTS,
    rows=(*bart_kin.ROWS, *bart_kin.FINAL_NORMS),
    **bart_kin.SHARED
    | {
        "only": bart_kin.PRE_NORM
        | {"static_position_embeddings": (True,), "normalize_embedding": (False,)},
    },
    **bart_kin.classes("Pegasus"),
    # Waves, which files keep as if they were weights.
    ignored_tensors=("model.*.embed_positions.weight",),
)
