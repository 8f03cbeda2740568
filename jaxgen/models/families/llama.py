"""Llama 2 and 3 (Touvron et al. 2023, Meta 2024); the other families differ from it in little."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_AND_FEED, GATED, TIED
from jaxgen.models.families.ropes import ROPE

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    heads=decoders.heads("Llama", *decoders.HEADS),
    moved={"spans": "transformer."},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=decoders.DEFAULTS | {"attention_bias": False, "mlp_bias": False},
    quirks=(TIED, GATED, ROPE, ATTENTION_AND_FEED),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
