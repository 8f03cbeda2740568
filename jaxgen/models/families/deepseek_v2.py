"""DeepSeek-V2 (2024): Llama with latent attention, and experts behind the first layers."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, latents, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED

DEFAULTS = latents.DEFAULTS | {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
    "routed_scaling_factor": 1.0,
    "n_group": None,
    "topk_group": None,
}
SHARED: dict[str, Any] = latents.SHARED | {"other_rows": mixtures.FUSED}
LAYER_ROWS = (*latents.LAYER_ROWS, *mixtures.ROWS, *mixtures.SHARED_EXPERTS)
# Widths that transformers derives, losses of routing, and what other code than transformers' reads.
IGNORED = frozenset(
    "aux_loss_alpha ep_size head_dim num_nextn_predict_layers output_router_logits qk_head_dim "
    "seq_aux".split()
)
# What the authors' code has other values for, which transformers' does not read.
ONLY: dict[str, tuple[Any, ...]] = {"scoring_func": ("softmax", None), "moe_layer_freq": (1, None)}
ONLY |= {"mlp_bias": (False,), "norm_topk_prob": (False, None)}

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    heads={"DeepseekV2ForSequenceClassification": "classes", "DeepseekV2Model": "none"},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES | {"rope.pairs": "neighbours"},
    defaults=DEFAULTS | {"first_k_dense_replace": 0, "topk_method": "greedy"},
    aliases={"num_experts": "n_routed_experts"},
    only=ONLY,
    ignored=IGNORED,
    quirks=(TIED, GATED, latents.ROPE, ATTENTION_BIAS, mixtures.GREEDY),
    layer_rows=LAYER_ROWS,
    **SHARED,
)
