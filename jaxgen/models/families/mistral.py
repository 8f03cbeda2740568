"""Mistral (Jiang et al. 2023): Llama with a sliding window."""

from __future__ import annotations

from jaxgen.models.families import llama
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.quirks import GATED, TIED
from jaxgen.models.families.ropes import ROPE

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    heads=llama.heads("Mistral", *llama.HEADS),
    head_rows=llama.SCORE,
    choices=llama.CHOICES,
    defaults=llama.DEFAULTS | {"sliding_window": 4096, "num_key_value_heads": 8},
    quirks=(TIED, GATED, ROPE, ONE_WINDOW),
    layer_rows=llama.LAYER_ROWS,
    **llama.SHARED,
)
