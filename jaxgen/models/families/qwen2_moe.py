"""Qwen 1.5 and 2 with experts (Qwen 2024): beside them a gated one for all tokens."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtures, qwen3_moe
from jaxgen.models.families.family import Family
from jaxgen.models.families.mixtures import BALANCE, NORMALISE
from jaxgen.models.families.quirks import GATED, TIED, one_of
from jaxgen.models.families.ropes import ROPE

SIZES = qwen3_moe.SIZES | {"experts.shared": "shared_expert_intermediate_size"}

SHARED_FIELDS: dict[str, Any] = qwen3_moe.SHARED_FIELDS | {"sizes": SIZES}

FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    heads=decoders.heads("Qwen2Moe", *decoders.HEADS),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES | {"experts.shared_gate": "sigmoid"},
    defaults=mixtures.DEFAULTS
    | {"num_key_value_heads": 16, "qkv_bias": True, "norm_topk_prob": False, "num_experts": 60}
    | {"num_experts_per_tok": 4, "moe_intermediate_size": 1408}
    | {"shared_expert_intermediate_size": 5632},
    only=qwen3_moe.ONLY,
    aliases={"num_local_experts": "num_experts"},
    ignored=qwen3_moe.IGNORED | {"layer_types"},
    quirks=(
        *(TIED, GATED, ROPE, NORMALISE, BALANCE),
        one_of("biases", "qkv_bias", {True: "qkv", False: "none"}),
    ),
    layer_rows=(*qwen3_moe.ROWS, *mixtures.GATED_SHARED),
    **SHARED_FIELDS,
)
