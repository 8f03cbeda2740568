"""Qwen 3 (Yang et al. 2025): Llama with normalised queries and keys."""

from __future__ import annotations

from jaxgen.models.families import llama
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import LAST_WINDOWS
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.qwen2 import WINDOWS
from jaxgen.models.families.ropes import ROPE

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    heads=llama.heads("Qwen3", *llama.HEADS),
    moved={"spans": "transformer."},
    head_rows=llama.SCORE,
    choices=llama.CHOICES | {"qk_norm": "head"},
    defaults=llama.DEFAULTS
    | WINDOWS
    | {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False},
    quirks=(TIED, GATED, ROPE, LAST_WINDOWS, ATTENTION_BIAS),
    layer_rows=llama.LAYER_ROWS,
    **llama.SHARED,
)
