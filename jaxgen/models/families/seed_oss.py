"""Seed-OSS (ByteDance 2025): Llama with biases of queries, keys and values."""

from __future__ import annotations

from jaxgen.models.families import llama
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, TIED, biases
from jaxgen.models.families.ropes import ROPE

BIASES = biases({"attention_bias": ("qkv",), "attention_out_bias": ("o",), "mlp_bias": ("feed",)})

FAMILY = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    heads=llama.heads("SeedOss", *llama.HEADS),
    moved={"spans": "transformer."},
    head_rows=llama.SCORE,
    choices=llama.CHOICES,
    defaults=llama.DEFAULTS
    | {"num_key_value_heads": 8, "head_dim": 128}
    | {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
    ignored=frozenset({"residual_dropout"}),
    quirks=(TIED, GATED, ROPE, BIASES),
    layer_rows=llama.LAYER_ROWS,
    **llama.SHARED,
)
