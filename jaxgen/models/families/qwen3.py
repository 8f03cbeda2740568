"""Qwen 3 (Yang et al. 2025): Llama with normalised queries and keys."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import LAST_WINDOWS
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.qwen2 import WINDOWS
from jaxgen.models.families.ropes import ROPE

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    heads=decoders.heads("Qwen3", *decoders.HEADS),
    moved={"spans": "transformer."},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES | {"qk_norm": "head"},
    defaults=decoders.DEFAULTS
    | WINDOWS
    | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
    quirks=(TIED, GATED, ROPE, LAST_WINDOWS, ATTENTION_BIAS),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
