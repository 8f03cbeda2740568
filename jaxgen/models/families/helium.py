"""Helium (Kyutai 2025): Llama whose neighbouring numbers turn biases."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, TIED, biases
from jaxgen.models.families.ropes import ROPE

BIASES = biases({"attention_bias": ("qkv",), "mlp_bias": ("feed",)})

FAMILY = Family(
    model_type="helium",
    architecture="HeliumForCausalLM",
    heads=decoders.heads("Helium", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES | {"rope.pairs": "neighbours"},
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 20, "head_dim": 128, "rms_norm_eps": 1e-8}
    | {"rope_theta": 1e5, "attention_bias": False, "mlp_bias": False},
    quirks=(TIED, GATED, ROPE, BIASES),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
