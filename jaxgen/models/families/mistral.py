"""Mistral (Jiang et al. 2023): Llama with a sliding window."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.quirks import GATED, TIED
from jaxgen.models.families.ropes import ROPE

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    heads=decoders.heads("Mistral", *decoders.HEADS),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=decoders.DEFAULTS | {"sliding_window": 4096, "num_key_value_heads": 8},
    quirks=(TIED, GATED, ROPE, ONE_WINDOW),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
