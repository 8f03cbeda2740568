"""Pegasus (Zhang et al. 2020): Marian's waves, normalised before, and once more at the end."""

from __future__ import annotations

from jaxgen.models.families import bart
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="pegasus",
    choices=bart.CHOICES | {"positions": "sinusoid", "norm_at": "pre"},
    defaults=bart.DEFAULTS,
    rows=(*bart.ROWS, *bart.FINAL_NORMS),
    **bart.SHARED
    | {
        "only": bart.PRE_NORM
        | {"static_position_embeddings": (True,), "normalize_embedding": (False,)},
    },
    **bart.classes("Pegasus"),
    # Waves, which files keep as if they were weights.
    ignored_tensors=("model.*.embed_positions.weight",),
)
