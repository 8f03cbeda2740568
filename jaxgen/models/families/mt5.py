"""mT5 (Xue et al. 2021): T5 1.1 of many languages, whose logits are not scaled."""

from __future__ import annotations

from jaxgen.models.families import t5, t5_kin
from jaxgen.models.families.family import Family, Quirk

OUTPUT = Quirk(
    ("tie_word_embeddings",),
    lambda theirs: t5_kin.read_output(theirs) | {"output_scale": "one"},
    lambda config: {"tie_word_embeddings": config.output == "tied"},
)

FAMILY = Family(
    model_type="mt5",
    choices=t5_kin.CHOICES,
    defaults=t5_kin.DEFAULTS | {"feed_forward_proj": "gated-gelu"},
    quirks=(OUTPUT, *t5_kin.QUIRKS),
    rows=t5.FAMILY.rows,
    layer_rows=t5.FAMILY.layer_rows,
    encoder_rows=t5.FAMILY.encoder_rows,
    **t5_kin.SHARED,
    **t5_kin.classes("MT5"),
)
