"""BART (Lewis et al. 2019): an encoder-decoder with learned positions, normalised afterwards."""

from __future__ import annotations

from jaxgen.models.families import bart_kin
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="bart",
    choices=bart_kin.CHOICES | {"positions": "learned", "embed.offset": 2, "embed.norm": "norm"},
    defaults=bart_kin.DEFAULTS,
    rows=(*bart_kin.ROWS, *bart_kin.POSITIONS, *bart_kin.EMBED_NORMS),
    **bart_kin.SHARED,
    **bart_kin.classes("Bart", heads=True),
)
