"""Helium (Kyutai 2025): Llama whose neighbouring numbers turn biases."""

from __future__ import annotations

from jaxgen.models.families import llama
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, TIED, biases
from jaxgen.models.families.ropes import ROPE

BIASES = biases({"attention_bias": ("qkv",), "mlp_bias": ("feed",)})

FAMILY = Family(
    model_type="helium",
    architecture="HeliumForCausalLM",
    heads=llama.heads("Helium", "classes", "token_classes"),
    head_rows=llama.SCORE,
    choices=llama.CHOICES | {"rope.pairs": "neighbours"},
    defaults=llama.DEFAULTS
    | {"num_key_value_heads": 20, "head_dim": 128, "rms_norm_eps": 1e-8}
    | {"rope_theta": 1e5, "attention_bias": False, "mlp_bias": False},
    quirks=(TIED, GATED, ROPE, BIASES),
    layer_rows=llama.LAYER_ROWS,
    **llama.SHARED,
)
