"""Architectures of GGUF files with experts, or with layers of the gated delta rule."""

from __future__ import annotations

from typing import Any

from jaxgen.pretrained import gguf_keys
from jaxgen.pretrained import gguf_rows as rows
from jaxgen.pretrained.gguf_architecture import Architecture
from jaxgen.pretrained.gguf_keys import PATTERN, WINDOW, WINDOWS, divided, one_by_root, same_as

UNTIED = {"tie_word_embeddings": False}
# Multipliers, which 0 turns off as well.
GRANITE: dict[str, Any] = {
    "turned": True,
    "keys": {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention.scale": "attention_multiplier",
        "logit_scale": "logits_scaling",
    },
    "absent": {
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "attention.scale": one_by_root("attention.key_length"),
    },
    "only": {"rope.scaling.finetuned": (True, True)},  # without which nothing turns
}
_EXPERT_WIDTH = {
    "feed_forward_length": same_as("expert_feed_forward_length"),
    "expert_feed_forward_length": divided("feed_forward_length", "expert_used_count"),
}
# Experts behind dense layers, as DeepSeek and GLM have them.
_BEHIND: dict[str, Any] = {
    "keys": {
        "leading_dense_block_count": "first_k_dense_replace",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "n_shared_experts",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        "expert_weights_norm": "norm_topk_prob",
    },
    "absent": {
        "leading_dense_block_count": 0,
        "expert_weights_scale": 1.0,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "expert_weights_norm": False,
        "nextn_predict_layers": 0,
    },
}
_DEEPSEEK: dict[str, Any] = {
    "name": "deepseek2",
    "rows": rows.PRE + rows.LATENT + rows.EXPERTS,
    "other_rows": rows.ONE_KV,
    "keys": _BEHIND["keys"]
    | {"attention.q_lora_rank": "q_lora_rank", "attention.kv_lora_rank": "kv_lora_rank"},
    "rules": (gguf_keys.LATENT, gguf_keys.DEPTH),
    "absent": _BEHIND["absent"]
    | {"attention.q_lora_rank": None, "rope.scaling.yarn_log_multiplier": 0.0}
    | {"attention.key_length_mla": 0, "attention.value_length_mla": 0},
    "share": None,
}
_DELTA: dict[str, Any] = {
    "offset": 1.0,
    "keys": {
        "ssm.conv_kernel": "linear_conv_kernel_dim",
        "ssm.state_size": "linear_key_head_dim",
        "ssm.group_count": "linear_num_key_heads",
        "ssm.time_step_rank": "linear_num_value_heads",
    },
    "rules": (gguf_keys.DELTA,),
    "absent": {"full_attention_interval": 4},
}
_DELTA_EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# Of 3.5; layers at the end predict tokens after the next.
_AHEAD: dict[str, Any] = _DELTA | {
    "rules": (gguf_keys.DELTA, gguf_keys.DEPTH, gguf_keys.IMAGE_ROPE),
    "absent": _DELTA["absent"] | {"nextn_predict_layers": 0},
}

MIXTURES = (
    Architecture(
        name="llama",
        family="mixtral",
        when=lambda meta, tensors: bool(meta.get("expert_count")),
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        turned=True,
        settings={"sliding_window": None},
    ),
    # llama.cpp knows by the architecture whether weights of experts are made to sum to 1.
    Architecture(
        name="qwen2moe",
        family="qwen2_moe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        absent={
            **_EXPERT_WIDTH,
            "expert_shared_feed_forward_length": same_as("feed_forward_length"),
        },
        settings=UNTIED | {"norm_topk_prob": False},
        flags={"qkv_bias": "blk.0.attn_q.bias"},
    ),
    Architecture(
        name="qwen3moe",
        family="qwen3_moe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        absent=_EXPERT_WIDTH,
        settings={"norm_topk_prob": True},
    ),
    Architecture(
        name="gpt-oss",
        family="gpt_oss",
        rows=(*rows.AFTER, *rows.SUBLAYERS, *rows.EXPERTS, rows.SINKS),
        keys={"expert_feed_forward_length": "intermediate_size"},
        rules=(WINDOWS,),
        settings=UNTIED,
        absent={PATTERN: 2, "feed_forward_length": same_as("expert_feed_forward_length")},
    ),
    Architecture(
        name="olmoe",
        family="olmoe",
        rows=rows.PRE + rows.OVER_HEADS + rows.EXPERTS,
        settings=UNTIED | {"norm_topk_prob": False},
    ),
    # llama.cpp computes it with other norms and another router than transformers.
    Architecture(
        name="phimoe",
        family="phimoe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        keys={WINDOW: "sliding_window", "attention.layer_norm_rms_epsilon": "rms_norm_eps"},
        absent={WINDOW: 0},
        flags={"attention_bias": "blk.0.attn_q.bias", "lm_head_bias": "output.bias"},
        gains=("short_mscale", "long_mscale"),
    ),
    Architecture(
        name="granitemoe",
        family="granitemoe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        **GRANITE,
    ),
    Architecture(
        family="deepseek_v3",
        when=lambda meta, tensors: meta.get("expert_gating_func") == 2,
        settings={"rope_interleave": True},
        only={"expert_gating_func": (1, 2)},
        **_DEEPSEEK,
    ),
    # Files do not say of chunks, of layers that don't turn, and of queries that grow.
    Architecture(
        name="llama4",
        family="llama4_text",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        rules=(gguf_keys.LLAMA4,),
        absent={"expert_shared_feed_forward_length": same_as("expert_feed_forward_length")},
        only={WINDOW: (8192, 8192)},
    ),
    # Its weights of experts never sum to 1 in transformers.
    Architecture(
        family="deepseek_v2",
        only={"expert_gating_func": (1, 1), "expert_weights_norm": (False, False)},
        **_DEEPSEEK,
    ),
    Architecture(
        name="glm4moe",
        family="glm4_moe",
        rows=rows.AFTER + rows.SUBLAYERS + rows.EXPERTS,
        rules=(gguf_keys.DEPTH,),
        flags={"attention_bias": "blk.0.attn_q.bias", "use_qk_norm": "blk.0.attn_q_norm.weight"},
        only={"expert_gating_func": (2, 2)},
        **_BEHIND,
    ),
    Architecture(
        name="qwen3next",
        family="qwen3_next",
        rows=rows.delta("KG") + rows.GATES + rows.EXPERTS,
        other_rows=rows.OLDER_DELTA,
        settings={"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1},
        **_DELTA | {"keys": _DELTA["keys"] | _DELTA_EXPERTS},
    ),
    Architecture(
        name="qwen35", family="qwen3_5_text", rows=rows.delta("GK") + rows.GATES_APART, **_AHEAD
    ),
    Architecture(
        name="qwen35moe",
        family="qwen3_5_moe_text",
        rows=rows.delta("GK") + rows.GATES_APART + rows.EXPERTS,
        **_AHEAD | {"keys": _DELTA["keys"] | _DELTA_EXPERTS},
    ),
)
