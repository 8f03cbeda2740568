"""umT5 (Chung et al. 2023): mT5 with a table of relative positions for each layer."""

from __future__ import annotations

from jaxgen.models.families import t5
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import Row

_TABLE = (Row(t5.TABLE, ("attn/relative/bias",), "R,N"),)

FAMILY = Family(
    model_type="umt5",
    choices=t5.CHOICES | {"relative.tables": "own"},
    defaults=t5.DEFAULTS | {"feed_forward_proj": "gated-gelu"},
    quirks=(t5.OUTPUT, *t5.QUIRKS),
    rows=t5.ROWS,
    layer_rows=(*_TABLE, *t5.FAMILY.layer_rows),
    encoder_rows=(*_TABLE, *t5.FAMILY.encoder_rows),
    **t5.SHARED,
    **t5.classes("UMT5"),
)
