"""Architectures of GGUF files as data: what each is in transformers, its keys and its tensors.

Sources: src/models of llama.cpp, and convert_hf_to_gguf.py, which says what it writes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jaxgen.pretrained import gguf_keys
from jaxgen.pretrained import gguf_rows as rows
from jaxgen.pretrained.gguf_architecture import Architecture
from jaxgen.pretrained.gguf_keys import (
    PATTERN,
    WINDOW,
    WINDOWS,
    Json,
    divided,
    one_by_root,
    query_scalar,
    same_as,
)

# Architectures of which llama.cpp expects heads that are together as wide as the model.
SQUARE = frozenset(
    """
    qwen2 qwen2moe gpt2 bert olmo2 olmoe phi3 starcoder2 stablelm gptneox phi2 falcon bloom mpt
    command-r cohere2 exaone4 modern-bert phimoe
    """.split()
)


_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
# Multipliers, which 0 turns off as well.
_GRANITE: dict[str, Any] = {
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
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
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
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
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
# T5's distances beyond which all have one bucket are in no file. umT5's layers have tables of
# their own. llama.cpp does not scale the hidden states before a tied output, which changes no
# order of tokens; transformers does.
_T5: dict[str, Any] = {
    "tables": rows.T5_TABLES + rows.T5_BIASES,
    "rows": rows.T5_DECODER,
    "encoder_rows": rows.T5_ENCODER,
    "layer": "dec.blk.{}.",
    "encoder": "enc.blk.{}.",
    "keys": {
        "block_count": "num_layers",
        "decoder_block_count": "num_decoder_layers",
        "attention.relative_buckets_count": "relative_attention_num_buckets",
    },
    "rules": (gguf_keys.T5_FEED,),
    "absent": {"decoder_block_count": same_as("block_count")},
    "settings": {"relative_attention_max_distance": 128},
}
_UMT5: dict[str, Any] = _T5 | {
    "when": lambda own, tensors: "enc.blk.1.attn_rel_b.weight" in tensors,
    "tables": rows.T5_TABLES,
    "rows": rows.T5_OWN_BIASES + rows.T5_DECODER,
    "encoder_rows": rows.T5_OWN_BIASES + rows.T5_ENCODER,
}


def _encoder_alone(fields: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the fields of an architecture of two towers for its encoder alone."""
    keys = {key: name for key, name in fields["keys"].items() if key != "decoder_block_count"}
    settings = fields["settings"] | {"architectures": [architecture]}
    return fields | {"keys": keys, "absent": {}, "settings": settings, "tied": False}


# In this order an export looks for the first that can say all of a config.
ARCHITECTURES = (
    Architecture(
        name="llama",
        family="llama",
        when=lambda own, tensors: not own.get("expert_count"),
        turned=True,
        shown=_BIASES,
    ),
    Architecture(
        name="llama",
        family="mixtral",
        when=lambda own, tensors: bool(own.get("expert_count")),
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        turned=True,
        settings={"sliding_window": None},
    ),
    Architecture(name="qwen2", family="qwen2"),
    Architecture(name="qwen3", family="qwen3"),
    Architecture(name="gemma", family="gemma", offset=1.0, settings=_TIED),
    Architecture(
        name="gemma2",
        family="gemma2",
        offset=1.0,
        rows=rows.BOTH + rows.SUBLAYERS,
        keys=_CAPS,
        rules=(WINDOWS, query_scalar(46, 144)),
        settings=_TIED,
        absent={WINDOW: 4096, PATTERN: 2}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    Architecture(
        name="gemma3",
        family="gemma3_text",
        offset=1.0,
        rows=rows.BOTH + rows.SUBLAYERS,
        keys={
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        rules=(WINDOWS, query_scalar(62, 168)),
        absent={WINDOW: 0, PATTERN: 6}
        | {"rope.freq_base_swa": 10000.0, "final_logit_softcapping": 0.0},
    ),
    Architecture(name="gpt2", family="gpt2", rows=rows.PRE + rows.FUSED),
    Architecture(
        name="bert",
        family="bert",
        rows=rows.POST + rows.SUBLAYERS,
        settings={"architectures": ["BertModel"], "hidden_act": "gelu"},
        only={"attention.causal": (True, False)},
        tied=False,
    ),
    Architecture(
        name="modern-bert",
        family="modernbert",
        rows=rows.PRE + rows.PHI3,
        keys={"rope.freq_base": "global_rope_theta", "rope.freq_base_swa": "local_rope_theta"},
        rules=(gguf_keys.BOTH_SIDES, gguf_keys.HIDDEN_ACT),
        settings={"architectures": ["ModernBertModel"]},
        absent={WINDOW: 0, PATTERN: 3, "hidden_act": "gelu"}
        | {"rope.freq_base_swa": same_as("rope.freq_base")},
        only={"attention.causal": (True, False)},
        tied=False,
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
        settings=_UNTIED | {"norm_topk_prob": False},
        shown={"qkv_bias": "blk.0.attn_q.bias"},
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
        settings=_UNTIED,
        absent={PATTERN: 2, "feed_forward_length": same_as("expert_feed_forward_length")},
    ),
    Architecture(
        name="olmo2",
        family="olmo2",
        when=lambda own, tensors: not own.get(WINDOW),
        rows=rows.OUT + rows.OVER_HEADS,
        settings=_UNTIED,
    ),
    Architecture(
        name="olmo2",
        family="olmo3",
        when=lambda own, tensors: bool(own.get(WINDOW)),
        rows=rows.OUT + rows.OVER_HEADS,
        rules=(WINDOWS,),
        settings=_UNTIED,
        absent={PATTERN: 4},
        only={"rope.freq_base": (10000.0, 500000.0)},  # of layers with a window, in transformers
    ),
    Architecture(
        name="olmoe",
        family="olmoe",
        rows=rows.PRE + rows.OVER_HEADS + rows.EXPERTS,
        settings=_UNTIED | {"norm_topk_prob": False},
    ),
    Architecture(
        name="phi3",
        family="phi3",
        rows=rows.PRE + rows.PHI3,
        keys={WINDOW: "sliding_window"},
        absent={WINDOW: 0},
    ),
    # llama.cpp computes it with other norms and another router than transformers.
    Architecture(
        name="phimoe",
        family="phimoe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        keys={WINDOW: "sliding_window", "attention.layer_norm_rms_epsilon": "rms_norm_eps"},
        absent={
            WINDOW: 0,
            "attention.layer_norm_epsilon": same_as("attention.layer_norm_rms_epsilon"),
        },
        shown={"attention_bias": "blk.0.attn_q.bias", "lm_head_bias": "output.bias"},
        gains=("short_mscale", "long_mscale"),
    ),
    Architecture(name="granite", family="granite", shown=_BIASES, **_GRANITE),
    Architecture(
        name="granitemoe",
        family="granitemoe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        **_GRANITE,
    ),
    # Every fourth layer does not turn, which files do not say.
    Architecture(name="smollm3", family="smollm3", turned=True),
    # llama.cpp has no windows there.
    Architecture(
        name="starcoder2",
        family="starcoder2",
        settings={"sliding_window": None, "hidden_act": "gelu_new"},
    ),
    Architecture(
        name="stablelm",
        family="stablelm",
        rules=(gguf_keys.ONE_NORM,),
        settings=_UNTIED,
        absent={"use_parallel_residual": None},
        shown={"use_qkv_bias": "blk.0.attn_q.bias"},
    ),
    Architecture(
        name="gptneox",
        family="gpt_neox",
        rows=rows.PRE + rows.FUSED,
        keys={
            "rope.freq_base": "rotary_emb_base",
            "use_parallel_residual": "use_parallel_residual",
        },
        settings=_UNTIED | {"hidden_act": "gelu"},
        share="rotary_pct",
    ),
    Architecture(
        name="phi2",
        family="phi",
        settings=_UNTIED | {"hidden_act": "gelu_new", "qk_layernorm": False},
    ),
    Architecture(
        name="falcon",
        family="falcon",
        rows=rows.FALCON,
        rules=(gguf_keys.FALCON,),
        settings={"alibi": False, "bias": False, "parallel_attn": True, "activation": "gelu"},
    ),
    Architecture(
        name="bloom", family="bloom", rows=rows.PRE + rows.FUSED, rules=(gguf_keys.DERIVED,)
    ),
    Architecture(
        name="mpt",
        family="mpt",
        rows=rows.PRE + rows.FUSED,
        rules=(gguf_keys.DERIVED,),
        only={"attention.max_alibi_bias": (0.0, 8.0)},
    ),
    Architecture(
        name="command-r",
        family="cohere",
        keys={"logit_scale": "logit_scale"},
        absent={"logit_scale": 1.0},
        settings=_TIED | {"use_qk_norm": False},
    ),
    Architecture(
        name="cohere2",
        family="cohere2",
        keys={"logit_scale": "logit_scale"},
        rules=(WINDOWS,),
        absent={PATTERN: 4},
        settings=_TIED,
    ),
    Architecture(
        name="exaone4",
        family="exaone4",
        rows=rows.OUT + rows.SUBLAYERS,
        rules=(gguf_keys.EXAONE,),
        absent={WINDOW: 4096, PATTERN: 4},
    ),
    Architecture(
        name="seed_oss",
        family="seed_oss",
        rows=rows.AFTER + rows.SUBLAYERS,
        settings={"attention_out_bias": False, "mlp_bias": False},
        shown={"attention_bias": "blk.0.attn_q.bias"},
    ),
    Architecture(
        family="deepseek_v3",
        when=lambda own, tensors: own.get("expert_gating_func") == 2,
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
        shown={"attention_bias": "blk.0.attn_q.bias", "use_qk_norm": "blk.0.attn_q_norm.weight"},
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
    Architecture(name="t5", family="umt5", **_UMT5),
    Architecture(name="t5", family="t5", **_T5),
    Architecture(name="t5encoder", family="umt5", **_encoder_alone(_UMT5, "UMT5EncoderModel")),
    Architecture(name="t5encoder", family="t5", **_encoder_alone(_T5, "T5EncoderModel")),
)
NAMES = tuple(dict.fromkeys(one.name for one in ARCHITECTURES))


def architecture_named(name: str, own: Json, tensors: Collection[str]) -> Architecture:
    """Return the architecture of a name in NAMES that a file of these keys and tensors is of."""
    return next(one for one in ARCHITECTURES if one.name == name and one.when(own, tensors))
