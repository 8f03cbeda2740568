"""Qwen 3 with experts (Yang et al. 2025)."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.mixtures import BALANCE, NORMALISE
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.ropes import ROPE

SIZES = decoders.SIZES | {
    "experts.number": "num_experts",
    "experts.active": "num_experts_per_tok",
    "experts.d_ff": "moe_intermediate_size",
}
ROWS = (*mixtures.ATTENTION, *mixtures.ROWS)
# Every layer has experts, and sees all before it.
ONLY: dict[str, tuple[Any, ...]] = {
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "use_sliding_window": (False,),
}
IGNORED = mixtures.IGNORED | {"sliding_window", "max_window_layers"}

SHARED_FIELDS: dict[str, Any] = decoders.SHARED | {"sizes": SIZES, "other_rows": mixtures.FUSED}

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    heads=decoders.heads("Qwen3Moe", *decoders.HEADS),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES | {"qk_norm": "head"},
    defaults=mixtures.DEFAULTS
    | {"num_key_value_heads": 4, "attention_bias": False, "norm_topk_prob": False}
    | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    only=ONLY,
    aliases={"num_local_experts": "num_experts"},
    ignored=IGNORED,
    quirks=(TIED, GATED, ROPE, ATTENTION_BIAS, NORMALISE, BALANCE),
    layer_rows=ROWS,
    **SHARED_FIELDS,
)
