"""OLMoE (Muennighoff et al. 2024): small experts; queries and keys normalised over all heads."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtures, olmo2, qwen3_moe
from jaxgen.models.families.family import Family
from jaxgen.models.families.mixtures import BALANCE, NORMALISE
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import norm

SIZES = {ours: key for ours, key in qwen3_moe.SIZES.items() if ours != "experts.d_ff"}

SHARED_FIELDS: dict[str, Any] = decoders.SHARED | {"sizes": SIZES, "other_rows": mixtures.FUSED}

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    heads=decoders.heads("Olmoe"),
    choices=decoders.CHOICES | {"qk_norm": "heads"},
    defaults=mixtures.DEFAULTS
    | {"rms_norm_eps": 1e-5, "attention_bias": False, "norm_topk_prob": False, "clip_qkv": None}
    | {"num_experts": 64, "num_experts_per_tok": 8, "router_aux_loss_coef": 0.01},
    only={"clip_qkv": (None,)},
    aliases={"num_local_experts": "num_experts"},
    ignored=mixtures.IGNORED,
    quirks=(TIED, GATED, ROPE, ATTENTION_BIAS, NORMALISE, BALANCE),
    layer_rows=(
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "feed_norm"),
        *(row for row in olmo2.LAYER_ROWS if row.theirs.startswith("self_attn.")),
        *mixtures.ROWS,
    ),
    **SHARED_FIELDS,
)
