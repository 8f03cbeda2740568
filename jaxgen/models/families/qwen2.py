"""Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import LAST_WINDOWS
from jaxgen.models.families.quirks import GATED, TIED
from jaxgen.models.families.ropes import ROPE

WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    heads=decoders.heads("Qwen2", *decoders.HEADS),
    moved={"spans": "transformer."},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES | {"biases": "qkv"},
    defaults=decoders.DEFAULTS | WINDOWS | {"num_key_value_heads": 32},
    quirks=(TIED, GATED, ROPE, LAST_WINDOWS),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
