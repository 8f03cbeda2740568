"""T5 (Raffel et al. 2019), version 1.0 and 1.1 (Flan): relative positions, unscaled scores."""

from __future__ import annotations

from jaxgen.models.families import t5_kin
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import Row

FAMILY = Family(
    model_type="t5",
    choices=t5_kin.CHOICES,
    defaults=t5_kin.DEFAULTS,
    quirks=(t5_kin.OUTPUT, *t5_kin.QUIRKS),
    rows=(
        *t5_kin.ROWS,
        Row(f"encoder.block.0.{t5_kin.TABLE}", ("encoder/relative/bias",), "R,N"),
        Row(f"decoder.block.0.{t5_kin.TABLE}", ("relative/bias",), "R,N"),
    ),
    layer_rows=(*t5_kin.SELF, *t5_kin.CROSS, *t5_kin.feed_rows("layer.2")),
    encoder_rows=(*t5_kin.SELF, *t5_kin.feed_rows("layer.1")),
    **t5_kin.SHARED,
    **t5_kin.classes("T5"),
)
