"""umT5 (Chung et al. 2023): mT5 with a table of relative positions for each layer."""

from __future__ import annotations

from jaxgen.models.families import t5, t5_kin
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import Row

_TABLE = (Row(t5_kin.TABLE, ("attn/relative/bias",), "R,N"),)

FAMILY = Family(
    model_type="umt5",
    choices=t5_kin.CHOICES | {"relative.tables": "own"},
    defaults=t5_kin.DEFAULTS | {"feed_forward_proj": "gated-gelu"},
    quirks=(t5_kin.OUTPUT, *t5_kin.QUIRKS),
    rows=t5_kin.ROWS,
    layer_rows=(*_TABLE, *t5.FAMILY.layer_rows),
    encoder_rows=(*_TABLE, *t5.FAMILY.encoder_rows),
    **t5_kin.SHARED,
    **t5_kin.classes("UMT5"),
)
