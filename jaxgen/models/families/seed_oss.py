"""Seed-OSS (ByteDance 2025): Llama with biases of queries, keys and values."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, TIED, biases
from jaxgen.models.families.ropes import ROPE

BIASES = biases({"attention_bias": ("qkv",), "attention_out_bias": ("o",), "mlp_bias": ("feed",)})

FAMILY = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    heads=decoders.heads("SeedOss", *decoders.HEADS),
    moved={"spans": "transformer."},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 8, "head_dim": 128}
    | {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
    ignored=frozenset({"residual_dropout"}),
    quirks=(TIED, GATED, ROPE, BIASES),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
