"""DeepSeek-V2 (2024): Llama with latent attention; its layers without experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import llama
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED, rope

SIZES = {ours: key for ours, key in llama.SIZES.items() if ours != "head_dim"} | {
    "latent.q_rank": "q_lora_rank",
    "latent.kv_rank": "kv_lora_rank",
    "latent.rope_width": "qk_rope_head_dim",
    "latent.plain_width": "qk_nope_head_dim",
    "latent.value_width": "v_head_dim",
}
CHOICES = llama.CHOICES | {"rope.pairs": "neighbours"}
DEFAULTS = llama.DEFAULTS | {
    "attention_bias": False,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
SHARED: dict[str, Any] = llama.SHARED | {"sizes": SIZES}
LAYER_ROWS = (
    Row("self_attn.q_a_proj.weight", ("attn/q_down",), "Z,D"),
    Row("self_attn.q_a_proj.bias", ("attn/q_down_bias",), "Z"),
    Row("self_attn.q_a_layernorm.weight", ("attn/q_norm/scale",), "Z"),
    Row("self_attn.q_b_proj.weight", ("attn/q_up",), "NH,Z"),
    Row("self_attn.kv_a_proj_with_mqa.weight", ("attn/kv_down",), "Z,D"),
    Row("self_attn.kv_a_proj_with_mqa.bias", ("attn/kv_down_bias",), "Z"),
    Row("self_attn.kv_a_layernorm.weight", ("attn/kv_norm/scale",), "Z"),
    Row("self_attn.kv_b_proj.weight", ("attn/k_up", "attn/v_up"), "N*H,Z"),
    *(row for row in llama.LAYER_ROWS if not row.theirs.startswith("self_attn.q_norm")),
)
# Widths that transformers derives, and how experts are routed, which dense layers don't read.
IGNORED = frozenset(
    "aux_loss_alpha ep_size head_dim moe_intermediate_size moe_layer_freq n_group n_routed_experts "
    "n_shared_experts norm_topk_prob num_experts_per_tok num_nextn_predict_layers "
    "output_router_logits qk_head_dim routed_scaling_factor scoring_func seq_aux topk_group "
    "topk_method".split()
)


def _read_dense(theirs: Mapping[str, Any]) -> dict[str, Any]:
    dense, layers = theirs["first_k_dense_replace"], theirs["num_hidden_layers"]
    if type(dense) is not int or type(layers) is not int or dense < layers:
        raise CheckpointError(
            f"first_k_dense_replace={dense!r:.60} of {layers!r:.60} layers are dense; layers with "
            f"experts are not known for this family"
        )
    return {}


def _write_dense(config: ModelConfig) -> dict[str, Any]:
    return {"first_k_dense_replace": config.layers}


DENSE = Quirk(("first_k_dense_replace",), _read_dense, _write_dense)
ROPE = rope(scores=True)

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    heads={"DeepseekV2ForSequenceClassification": "classes", "DeepseekV2Model": "none"},
    head_rows=llama.SCORE,
    choices=CHOICES,
    defaults=DEFAULTS | {"first_k_dense_replace": 0},
    only={"mlp_bias": (False,)},
    ignored=IGNORED,
    quirks=(TIED, GATED, ROPE, ATTENTION_BIAS, DENSE),
    layer_rows=LAYER_ROWS,
    **SHARED,
)
