"""BERT (Devlin et al. 2018): an encoder, normalised after each sublayer."""

from __future__ import annotations

from jaxgen.models.families import encoders
from jaxgen.models.families.family import Family

MLM = "cls.predictions"
MASKED = (f"{MLM}.transform.dense", f"{MLM}.transform.LayerNorm", f"{MLM}.decoder", f"{MLM}.bias")
POOLER = "bert.pooler.dense"
IGNORED = ("cls.seq_relationship.*",)  # of the sentence pairs of pretraining

FAMILY = Family(
    model_type="bert",
    layer="bert.encoder.layer.{}.",
    sizes=encoders.SIZES | encoders.CONTEXT,
    choices=encoders.CHOICES,
    defaults=encoders.DEFAULTS,
    only=encoders.ONLY,
    ignored=encoders.IGNORED,
    quirks=encoders.QUIRKS,
    layer_rows=encoders.LAYER_ROWS,
    **encoders.classes("Bert", base="pooled", BertForPreTraining="mlm"),
    **encoders.parts("bert", MASKED, (POOLER, "classifier"), POOLER, ignored=IGNORED),
)
