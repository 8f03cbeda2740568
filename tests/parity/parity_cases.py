"""The cases of parity with transformers: shared by the maker of golden files and the tests.

Weights are not kept: both sides draw them from numpy's frozen generator, by name and shape.
"""

import json
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
V, T, NEW = 61, 20, 6
PADDED = 5  # positions of the second row that are padding, on the left
TOKENS = np.random.RandomState(0).randint(3, V, (2, T))

_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
GPT2 = _IDS | {"vocab_size": V, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
LLAMA = _IDS | {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FOUR = LLAMA | {"num_hidden_layers": 4, "sliding_window": 5}
GEMMA = LLAMA | {"head_dim": 8}
GEMMA2 = FOUR | {"head_dim": 8, "query_pre_attn_scalar": 6}


def rope(kind, **values):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


OLD = {"original_max_position_embeddings": 16}
CASES: dict[str, dict[str, dict]] = {
    "gpt2": {
        "plain": GPT2,
        "untied": GPT2 | {"tie_word_embeddings": False},
        "wide": GPT2 | {"n_inner": 40, "layer_norm_epsilon": 1e-3},
        **{name: GPT2 | {"activation_function": name} for name in ("gelu", "relu", "silu")},
    },
    "llama": {
        "grouped": LLAMA,
        "one key head, tied": LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True},
        "all heads, biases": LLAMA
        | {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
        "attention biases, wide heads": LLAMA | {"attention_bias": True, "head_dim": 8},
        "geglu": LLAMA | {"hidden_act": "gelu_pytorch_tanh"},
        "long waves": LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "linear": LLAMA | rope("linear", factor=3.0),
        "llama3": LLAMA
        | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **OLD),
        "yarn": LLAMA | rope("yarn", factor=4.0, **OLD),
        "yarn, told": LLAMA
        | rope("yarn", factor=2.0, beta_fast=16, beta_slow=2, attention_factor=0.9, **OLD),
    },
    "mistral": {
        "window": LLAMA | {"sliding_window": 5},
        "no window": LLAMA | {"sliding_window": None, "tie_word_embeddings": True},
    },
    "qwen2": {
        "plain": LLAMA,
        "last layers with windows": FOUR | {"use_sliding_window": True, "max_window_layers": 2},
        "tied": LLAMA | {"tie_word_embeddings": True},
    },
    "qwen3": {
        "plain": LLAMA | {"head_dim": 8},
        "biases, tied": LLAMA | {"attention_bias": True, "tie_word_embeddings": True},
        "windows": FOUR | {"use_sliding_window": True, "max_window_layers": 1},
    },
    "gemma": {
        "plain": GEMMA,
        "one key head": GEMMA | {"num_key_value_heads": 1, "hidden_activation": None},
    },
    "gemma2": {
        "plain": GEMMA2,
        "no caps": GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "low caps": GEMMA2 | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5},
    },
    "gemma3_text": {
        "plain": GEMMA2 | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        "stretched": GEMMA2
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    },
}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
FALCON = {k: v for k, v in NEOX.items() if k != "intermediate_size"}
BLOOM = _IDS | {"vocab_size": V, "hidden_size": 16, "n_layer": 2, "n_head": 4}
MPT = _IDS | {"vocab_size": V, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
# Eager attention of transformers adds Falcon's biases twice, the default one once.
SCALED = FALCON | {"alibi": True, "attn_implementation": "sdpa"}
OPT = FALCON | {"ffn_dim": 24, "word_embed_proj_dim": 16}
LOCAL_FIRST = ["sliding_attention", "full_attention"]
_GROWTH = {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 0.5}
GROWING = rope("yarn", factor=4.0, original_max_position_embeddings=6, **_GROWTH)
WIDE = LLAMA | {"head_dim": 8}
LONGROPE = rope("longrope", short_factor=[1.0, 1.5], long_factor=[2.0, 3.0])
# A golden case of each of the other decoders; what else they can be is compared live alone.
CASES |= {
    "smollm3": {"plain": FOUR | {"layer_types": None, "sliding_window": None}},
    "olmo2": {"plain": LLAMA},
    "granite": {
        "plain": LLAMA
        | {"embedding_multiplier": 3.0, "logits_scaling": 0.5}
        | {"residual_multiplier": 0.4, "attention_multiplier": 0.3}
    },
    "seed_oss": {"plain": WIDE},
    "helium": {"plain": LLAMA | {"head_dim": 4}},
    "phi": {"plain": LLAMA},
    "phi3": {"longrope": LLAMA | LONGROPE | {"original_max_position_embeddings": 6}},
    "gptj": {"plain": GPT2 | {"rotary_dim": 2}},
    "starcoder2": {"plain": LLAMA},
    "cohere": {"plain": LLAMA | {"use_qk_norm": True, "logit_scale": 2.5}},
    "cohere2": {
        "plain": FOUR
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "logit_scale": 0.5}
    },
    "nanochat": {"plain": LLAMA},
    "stablelm": {"plain": LLAMA | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}},
    "gpt_neox": {"plain": NEOX | {"rotary_pct": 0.5}},
    "bloom": {"plain": BLOOM},
    "falcon": {"grouped": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}},
    "mpt": {"plain": MPT},
    "opt": {"plain": OPT},
    "exaone4": {"plain": FOUR},
    "olmo3": {"plain": FOUR | {"num_hidden_layers": 2, "layer_types": LOCAL_FIRST}},
    "ministral3": {"plain": WIDE | GROWING},
}
LATENT = LLAMA | {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
}
DENSE = LATENT | {"first_k_dense_replace": 2}
MSCALE = rope("yarn", factor=4.0, mscale=0.707, mscale_all_dim=0.707, **OLD)
CASES |= {"minicpm3": {"plain": LATENT | {"scale_emb": 1.5}}}
RULE = WIDE | {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    # What heads read is divided by its size, which is small in so small a model: an epsilon that
    # keeps float32's rounding below the tolerance, on both sides.
    "rms_norm_eps": 1e-3,
}
CASES |= {"qwen3_5_text": {"plain": RULE}}
LOCAL = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2}
NAMED = LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}
QWEN = NAMED | {"moe_intermediate_size": 12, "norm_topk_prob": True}
GATED_SHARED = QWEN | {"shared_expert_intermediate_size": 20}
_BEHIND = {"num_hidden_layers": 2, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4}
_BEHIND |= {"moe_intermediate_size": 12, "topk_group": 2, "n_shared_experts": 2}
_BEHIND |= {"first_k_dense_replace": 1, "routed_scaling_factor": 2.5}
GLM = WIDE | _BEHIND | {"use_qk_norm": True}
MIXED = LATENT | _BEHIND
FACTORS = {"embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5}
_STEP = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "rope_theta": 5e5}
LLAMA4 = WIDE | LOCAL | {"head_dim": 8, "intermediate_size_mlp": 20, "num_experts_per_tok": 1}
LLAMA4 |= {"attention_chunk_size": 6, "attn_temperature_tuning": False}
PHI = LOCAL | rope("longrope", short_factor=[1.0, 1.5], long_factor=[2.0, 3.0])
PHI["rope_parameters"] |= {"short_mscale": 1.2, "long_mscale": 1.2}
PHI["rope_parameters"] |= {"original_max_position_embeddings": 32}
# Families with experts, whose greedy texts are compared live alone.
EXPERTS: dict[str, dict[str, dict]] = {
    "mixtral": {"window": LOCAL | {"sliding_window": 5}},
    "qwen2_moe": {"not normalised": GATED_SHARED | {"norm_topk_prob": False}},
    "qwen3_moe": {"plain": QWEN | {"head_dim": 8}},
    "olmoe": {"plain": NAMED},
    "gpt_oss": {"windows": LOCAL | {"sliding_window": 4, "head_dim": 8}},
    "granitemoe": {"multipliers": LOCAL | FACTORS | {"attention_multiplier": 0.3}},
    "glm4_moe": {"groups": GLM},
    "deepseek_v2": {"yarn, groups": MIXED | MSCALE | {"topk_method": "group_limited_greedy"}},
    "deepseek_v3": {"groups": MIXED},
    "qwen3_next": {"plain": RULE | GATED_SHARED | RULE},
    "qwen3_5_moe_text": {"plain": RULE | GATED_SHARED | RULE},
    "phimoe": {"longrope, biases": PHI | {"attention_bias": True, "lm_head_bias": True}},
    "llama4_text": {
        "chunks, a dense layer": LLAMA4
        | {"no_rope_layers": [1, 0], "interleave_moe_layer_step": 2}
        | rope("llama3", **_STEP, **OLD)
    },
}
MODERN = {k: v for k, v in FOUR.items() if k not in ("num_key_value_heads", "sliding_window")}
MODERN |= {"bos_token_id": 1, "eos_token_id": 2, "local_attention": 8}
CASES |= {"modernbert-decoder": {"two layers": MODERN | {"num_hidden_layers": 2}}}
CASES |= EXPERTS
# Layers that share keys, and vectors of tokens for each layer.
SHARED_KEYS = LLAMA | {
    "head_dim": 4,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 5,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 6,
}
GEMMA3N = SHARED_KEYS | {
    "vocab_size_per_layer_input": 50,
    "laurel_rank": 4,
    "altup_num_inputs": 3,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}
GEMMA4 = SHARED_KEYS | {
    "vocab_size_per_layer_input": V,
    "global_head_dim": 8,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "use_double_wide_mlp": True,
}
ALONE = {"num_kv_shared_layers": 0, "use_double_wide_mlp": False}
UNIFIED = {key: value for key, value in GEMMA4.items() if "per_layer" not in key} | ALONE
CASES |= {
    "gemma3n_text": {"plain": GEMMA3N},
    "gemma4_text": {"plain": GEMMA4},
}
BIASED = {"attention_bias": True, "mlp_bias": True}
WINDOWS = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 5}
VARIANTS: dict[str, dict[str, dict]] = {
    "gpt2": {"scores by layer": GPT2 | {"scale_attn_by_inverse_layer_idx": True}},
    "llama": {
        "exact gelu": LLAMA | {"hidden_act": "gelu"},
        "relu, biases of the feed-forward": LLAMA | {"hidden_act": "relu", "mlp_bias": True},
    },
    "smollm3": {
        "windows": FOUR
        | {"use_sliding_window": True, "no_rope_layers": [1, 0, 0, 1]}
        | {"tie_word_embeddings": False},
        "windows where told": FOUR | WINDOWS | {"no_rope_layers": [1, 1, 0, 0]} | BIASED,
    },
    "olmo2": {"biases, tied": LLAMA | {"attention_bias": True, "tie_word_embeddings": True}},
    "granite": {"none of its factors": LLAMA | BIASED | {"attention_multiplier": 0.5}},
    "seed_oss": {
        "no biases": LLAMA | {"attention_bias": False},
        "all biases": LLAMA | BIASED | {"attention_out_bias": True},
        "biases of the feed-forward": LLAMA | {"attention_bias": False, "mlp_bias": True},
    },
    "helium": {
        "biases": LLAMA | {"head_dim": 4, "attention_bias": True},
        "biases of the feed-forward": LLAMA | {"head_dim": 4, "mlp_bias": True},
    },
    "phi": {
        "norms of queries": LLAMA | {"qk_layernorm": True},
        "all of a head turns, tied": LLAMA
        | {"partial_rotary_factor": 1.0, "hidden_act": "gelu", "tie_word_embeddings": True},
    },
    "phi3": {
        "plain": LLAMA,
        "window, half of a head": LLAMA
        | {"sliding_window": 5, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
        "short": LLAMA | LONGROPE | {"original_max_position_embeddings": 40},
    },
    "gptj": {"all of a head turns": GPT2 | {"rotary_dim": 4, "n_inner": 24}},
    "starcoder2": {
        "window": LLAMA | {"sliding_window": 5, "tie_word_embeddings": False},
        "no biases": LLAMA | {"use_bias": False, "hidden_act": "gelu"},
    },
    "deepseek_v2": {
        "queries from the stream": DENSE | {"q_lora_rank": None},
        "yarn": DENSE | MSCALE,
        "greedy, all layers": MIXED | {"topk_method": "greedy", "first_k_dense_replace": 0},
    },
    "deepseek_v3": {
        "plain, tied": DENSE | MSCALE | {"tie_word_embeddings": True},
        "biases, halves, queries from the stream": DENSE
        | {"q_lora_rank": None, "attention_bias": True, "rope_interleave": False},
        "not normalised, one group": MIXED
        | {"norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    },
    "qwen3_next": {
        "every fourth, biases, heads of one number, all of a head turns": RULE
        | {"layer_types": None, "num_hidden_layers": 4, "mlp_only_layers": [0, 1, 2, 3]}
        | {"attention_bias": True, "linear_num_value_heads": 2, "linear_conv_kernel_dim": 3}
        | {"tie_word_embeddings": True, "partial_rotary_factor": 1.0},
        "one key head, not normalised": RULE
        | GATED_SHARED
        | {"layer_types": None, "num_hidden_layers": 4, "linear_num_key_heads": 1, "head_dim": 8}
        | {"norm_topk_prob": False, "linear_num_value_heads": 2, "rms_norm_eps": 1e-3},
    },
    "mixtral": {"plain": LOCAL},
    "qwen2_moe": {"normalised, no biases": GATED_SHARED | {"qkv_bias": False}},
    "qwen3_moe": {
        "not normalised, biases": QWEN | {"norm_topk_prob": False, "attention_bias": True}
    },
    "olmoe": {"normalised": NAMED | {"norm_topk_prob": True}},
    "gpt_oss": {"one expert": LOCAL | {"head_dim": 8, "num_experts_per_tok": 1}},
    "glm4_moe": {
        "one group, biases": GLM
        | {"n_group": 1, "topk_group": 1, "attention_bias": True, "norm_topk_prob": False}
    },
    "phimoe": {"plain": LOCAL | {"sliding_window": 5, "tie_word_embeddings": True}},
    "llama4_text": {
        "all experts, two of them": LLAMA4
        | {"num_hidden_layers": 4, "num_experts_per_tok": 2, "use_qk_norm": False}
        | {"attention_bias": True, "no_rope_layers": [1, 0, 1, 0]},
        "no chunks": LLAMA4 | {"attention_chunk_size": None, "moe_layers": [0]},
    },
    "gemma3n_text": {
        "nothing shared, other widths, untied": GEMMA3N
        | {"num_kv_shared_layers": 0, "intermediate_size": [24, 20, 24, 28], "rms_norm_eps": 1e-3}
        | {"activation_sparsity_pattern": None, "tie_word_embeddings": False}
        | {"attention_bias": True, "final_logit_softcapping": 2.0},
        "kinds as they come": GEMMA3N
        | {"num_hidden_layers": 11, "layer_types": None, "num_kv_shared_layers": 1}
        | {"activation_sparsity_pattern": None, "rms_norm_eps": 1e-3},
    },
    "gemma4_text": {
        "nothing shared, no vectors": GEMMA4
        | ALONE
        | {"attention_k_eq_v": False, "hidden_size_per_layer_input": 0, "attention_bias": True}
        | {"final_logit_softcapping": 3.0, "tie_word_embeddings": False},
        "experts": GEMMA4
        | ALONE
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
        | {"moe_intermediate_size": 12, "hidden_size_per_layer_input": 0},
        "kinds as they come": GEMMA4 | ALONE | {"num_hidden_layers": 7, "layer_types": None},
        "stretched": GEMMA4
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5}
                | {"rope_theta": 100.0, "factor": 2.0},
            }
        },
        "heads by layer": GEMMA4
        | ALONE
        | {"per_layer_config": {1: {"head_dim": 6}, 3: {"head_dim": 6, "num_key_value_heads": 2}}},
    },
    "gemma4_unified_text": {"plain": UNIFIED},
    "minicpm3": {
        "no scales": LATENT
        | {"scale_emb": 1, "scale_depth": None, "dim_model_base": None, "v_head_dim": None},
        "untied": LATENT | {"dim_model_base": 4, "tie_word_embeddings": False} | MSCALE,
    },
    "cohere": {"other scale": LLAMA | {"logit_scale": 0.3, "tie_word_embeddings": False}},
    "nanochat": {
        "no cap, biases": LLAMA
        | {"final_logit_softcapping": None, "attention_bias": True, "hidden_act": "gelu"},
    },
    "stablelm": {
        "parallel": LLAMA
        | {"partial_rotary_factor": 0.5, "use_parallel_residual": True, "num_key_value_heads": 4},
        "all of a head turns": LLAMA | {"partial_rotary_factor": 1.0},
        "norms of each head": LLAMA | {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    },
    "gpt_neox": {
        "one after another": NEOX
        | {"use_parallel_residual": False, "hidden_act": "gelu_new", "rotary_pct": 0.5},
        "no biases, tied": NEOX
        | {"attention_bias": False, "tie_word_embeddings": True, "rotary_emb_base": 500}
        | {"rotary_pct": 1.0},
    },
    "bloom": {"six heads": BLOOM | {"n_head": 6, "hidden_size": 24}},
    "falcon": {
        "one key head": FALCON,
        "biases, narrow": FALCON | {"bias": True, "ffn_hidden_size": 24},
        "grouped, one norm": FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "alibi, one after another": SCALED
        | {"multi_query": False, "parallel_attn": False, "bias": True},
        "alibi, six heads": SCALED | {"num_attention_heads": 6, "hidden_size": 24},
    },
    "opt": {
        "norms behind": OPT | {"do_layer_norm_before": False, "activation_function": "gelu"},
        "no biases": OPT | {"enable_bias": False, "tie_word_embeddings": False},
        "narrow tokens, norms behind": OPT
        | {"do_layer_norm_before": False, "word_embed_proj_dim": 8},
        "wide tokens, untied": OPT | {"tie_word_embeddings": False, "word_embed_proj_dim": 20},
    },
    "mpt": {
        "six heads, another scale": MPT
        | {"n_heads": 6, "d_model": 24, "attn_config": {"softmax_scale": 0.3}},
    },
    "exaone4": {
        "no windows": FOUR | {"sliding_window": None, "layer_types": ["full_attention"] * 4},
        "windows": FOUR | WINDOWS | {"tie_word_embeddings": True},
    },
    "olmo3": {
        "stretched": FOUR
        | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, **OLD}, "attention_bias": True},
        "two bases": FOUR
        | {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
            }
        },
    },
    "ministral3": {
        "window, no growth": WIDE
        | {"sliding_window": 5}
        | rope("default", llama_4_scaling_beta=0.0, original_max_position_embeddings=16),
    },
    "cohere2": {"no windows": LLAMA | {"layer_types": ["full_attention"] * 2, "logit_scale": 1.0}},
    "modernbert-decoder": {
        "seven layers, biases of norms and heads": MODERN
        | {"num_hidden_layers": 7, "norm_bias": True, "classifier_bias": True, **BIASED}
        | {"decoder_bias": False, "tie_word_embeddings": False, "classifier_activation": "silu"},
    },
}
VARIANT_NAMES = [(family, name) for family, cases in VARIANTS.items() for name in cases]
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
BART = _IDS | {
    "vocab_size": V,
    "d_model": 16,
    "max_position_embeddings": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "decoder_start_token_id": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = _IDS | {
    "vocab_size": V,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "eos_token_id": 1,
}
ZERO = BART | {"pad_token_id": 0}
GATED = T5 | {"feed_forward_proj": "gated-gelu"}
_TOWER = GEMMA2 | {"num_hidden_layers": 3}
T5GEMMA = {
    "encoder": _TOWER,
    "decoder": _TOWER | {"num_hidden_layers": 2},
    "vocab_size": V,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}
# Encoder-decoders of younger families, which have a golden file of their own.
SEQ2SEQ: dict[tuple[str, str], dict[str, dict]] = {
    ("mt5", "MT5ForConditionalGeneration"): {"lm": GATED},
    ("umt5", "UMT5ForConditionalGeneration"): {"lm": GATED},
    ("mbart", "MBartForConditionalGeneration"): {"lm": BART | {"scale_embedding": True}},
    ("pegasus", "PegasusForConditionalGeneration"): {"lm": ZERO | {"scale_embedding": True}},
    ("m2m_100", "M2M100ForConditionalGeneration"): {"lm": BART},
    ("blenderbot", "BlenderbotForConditionalGeneration"): {"lm": ZERO},
    ("t5gemma", "T5GemmaForConditionalGeneration"): {"lm": T5GEMMA},
    ("t5gemma", "T5GemmaForSequenceClassification"): {
        "two towers": T5GEMMA | {"num_labels": 3},
        "encoder": T5GEMMA | {"num_labels": 3, "is_encoder_decoder": False},
    },
    ("t5gemma", "T5GemmaForTokenClassification"): {
        "two towers": T5GEMMA | {"num_labels": 5},
        "encoder": T5GEMMA | {"is_encoder_decoder": False},
    },
    ("blenderbot-small", "BlenderbotSmallForConditionalGeneration"): {"lm": ZERO},
}
DISTILBERT = _IDS | {"vocab_size": V, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
DISTILBERT |= {"max_position_embeddings": 32}
NARROW = BERT | {"embedding_size": 8}
DEBERTA = BERT | {"relative_attention": True, "position_biased_input": False}
DEBERTA |= {"pos_att_type": "p2c|c2p", "position_buckets": 8, "max_position_embeddings": 16}
DEBERTA |= {"norm_rel_ebd": "layer_norm", "share_att_key": True}
# One case of each other encoder.
ENCODERS: dict[tuple[str, str], dict[str, dict]] = {
    ("distilbert", "DistilBertForSequenceClassification"): {"classes": DISTILBERT},
    ("xlm-roberta", "XLMRobertaForTokenClassification"): {"tokens": BERT | {"pad_token_id": 1}},
    ("mpnet", "MPNetModel"): {"base": BERT | {"pad_token_id": 1}},
    ("electra", "ElectraForMaskedLM"): {"mlm": NARROW},
    ("albert", "AlbertForMaskedLM"): {
        "mlm": NARROW | {"num_hidden_layers": 3},
        "groups": NARROW | {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
    },
    ("deberta-v2", "DebertaV2ForMaskedLM"): {"mlm": DEBERTA},
    ("modernbert", "ModernBertForMaskedLM"): {"mlm": MODERN | {"global_attn_every_n_layers": 2}},
}
_WIDE = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 6}
_WIDE |= {"intermediate_size": 40}
# Encoder-decoders whose towers have sizes of their own.
UNEQUAL: dict[tuple[str, str], dict] = {
    ("t5gemma", "T5GemmaForConditionalGeneration"): T5GEMMA | {"encoder": _TOWER | _WIDE},
    ("bart", "BartForConditionalGeneration"): BART
    | {"encoder_attention_heads": 2, "encoder_ffn_dim": 40},
}
_OWN = {"share_att_key": False}
ENCODER_VARIANTS: dict[tuple[str, str], dict[str, dict]] = {
    ("t5gemma", "T5GemmaEncoderModel"): {
        "alone": T5GEMMA | {"is_encoder_decoder": False, "encoder": _TOWER | _WIDE},
    },
    ("t5gemma", "T5GemmaForSequenceClassification"): {
        "alone, one class": T5GEMMA
        | {"is_encoder_decoder": False, "encoder": _TOWER | _WIDE, "num_labels": 1},
        "unequal": T5GEMMA | {"encoder": _TOWER | _WIDE},
    },
    ("t5gemma", "T5GemmaForTokenClassification"): {
        "unequal": T5GEMMA | {"encoder": _TOWER | _WIDE},
    },
    ("distilbert", "DistilBertForMaskedLM"): {"relu": DISTILBERT | {"activation": "relu"}},
    ("camembert", "CamembertForMaskedLM"): {"mlm": BERT | {"pad_token_id": 1}},
    ("mpnet", "MPNetForSequenceClassification"): {"classes": BERT | {"pad_token_id": 1}},
    ("electra", "ElectraForPreTraining"): {"same width": NARROW | {"embedding_size": 16}},
    ("electra", "ElectraForSequenceClassification"): {"relu": NARROW | {"hidden_act": "relu"}},
    ("albert", "AlbertModel"): {
        "same width": NARROW | {"embedding_size": 16},
        "groups": NARROW | {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
        "a group a layer": NARROW | {"num_hidden_layers": 3, "num_hidden_groups": 3},
    },
    ("albert", "AlbertForSequenceClassification"): {"one layer": NARROW | {"num_hidden_layers": 1}},
    ("deberta-v2", "DebertaV2Model"): {
        "own projections": DEBERTA | _OWN,
        "of keys": DEBERTA | _OWN | {"pos_att_type": ["p2c"]},
        "of queries, no norm": DEBERTA | {"pos_att_type": ["c2p"], "norm_rel_ebd": "none"},
        "no buckets": DEBERTA | {"position_buckets": -1, "max_relative_positions": 6},
        "types": DEBERTA | {"type_vocab_size": 2, "max_relative_positions": 9},
    },
    ("deberta-v2", "DebertaV2ForSequenceClassification"): {
        "tanh": DEBERTA | {"pooler_hidden_act": "tanh"}
    },
    ("modernbert", "ModernBertModel"): {
        "two layers of a period of three": MODERN | {"num_hidden_layers": 2},
        "windows alone": MODERN | {"layer_types": ["sliding_attention"] * 4},
    },
    ("modernbert", "ModernBertForMaskedLM"): {
        "all biases, seven layers": MODERN
        | {"num_hidden_layers": 7, "norm_bias": True, "classifier_bias": True, **BIASED},
        "no bias of tokens, untied": MODERN | {"decoder_bias": False, "tie_word_embeddings": False},
        "biases of norms, relu": MODERN | {"norm_bias": True, "hidden_activation": "relu"},
    },
    ("modernbert", "ModernBertForSequenceClassification"): {
        "mean": MODERN | {"classifier_pooling": "mean", "num_labels": 3},
        "first": MODERN | {"norm_bias": True, "attention_bias": True, "classifier_bias": True},
    },
    ("modernbert", "ModernBertForTokenClassification"): {
        "bases": MODERN
        | {"classifier_activation": "relu", "norm_bias": True, "mlp_bias": True}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            }
        },
    },
    ("modernbert", "ModernBertForQuestionAnswering"): {
        "no windows": MODERN | {"global_attn_every_n_layers": 1}
    },
}
# (model_type, class of transformers): the cases whose padding is on the right.
RIGHT: dict[tuple[str, str], dict[str, dict]] = {
    ("bert", "BertForMaskedLM"): {"mlm": BERT, "relu": BERT | {"hidden_act": "relu"}},
    ("bert", "BertForSequenceClassification"): {"classes": BERT | {"num_labels": 3}},
    ("bert", "BertForQuestionAnswering"): {"spans": BERT},
    ("bert", "BertModel"): {"base": BERT},
    ("roberta", "RobertaModel"): {"base": BERT | {"pad_token_id": 1}},
    ("roberta", "RobertaForMaskedLM"): {"mlm": BERT | {"pad_token_id": 1}},
    ("roberta", "RobertaForSequenceClassification"): {"classes": BERT | {"pad_token_id": 1}},
    ("roberta", "RobertaForQuestionAnswering"): {"spans": BERT | {"pad_token_id": 1}},
    ("t5", "T5ForConditionalGeneration"): {
        "v1.0": T5,
        "gated": T5 | {"feed_forward_proj": "gated-gelu"},
        "v1.1": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    },
    ("t5", "T5Model"): {"base": T5},
    ("bart", "BartForConditionalGeneration"): {"lm": BART},
    ("bart", "BartModel"): {"base": BART | {"scale_embedding": True}},
    ("marian", "MarianMTModel"): {
        "lm": BART | {"scale_embedding": True, "activation_function": "silu"}
    },
    ("gpt2", "GPT2ForSequenceClassification"): {"classes": GPT2},
    ("gpt2", "GPT2ForQuestionAnswering"): {"spans": GPT2},
    ("llama", "LlamaForSequenceClassification"): {"classes": LLAMA | {"num_labels": 5}},
    ("llama", "LlamaForQuestionAnswering"): {"spans": LLAMA},
    **SEQ2SEQ,
    **ENCODERS,
}
# What a folder may ask of generation, all at once, in a search with beams.
ASKED = {
    "num_beams": 3,
    "length_penalty": 0.6,
    "early_stopping": True,
    "repetition_penalty": 1.4,
    "encoder_repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 4,  # two would be a tie
    "bad_words_ids": [[11], [12, 13]],
    "suppress_tokens": [7, 8],
    "begin_suppress_tokens": [9, 10],
    "min_length": 5,
    "max_new_tokens": 8,
    "eos_token_id": [2, 3],
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
    "do_sample": False,
}
ASKING = ("bart", "BartForConditionalGeneration", "lm")
VANILLA = {
    "model_type": "vanilla",
    "architectures": ["Transformer"],
    "vocab_size": V,
    "max_length": 32,
    "d_model": 16,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "dim_feedforward": 24,
    "layer_norm_eps": 1e-5,
    "activation": "relu",
}
HOMES = {"right", "seq2seq", "encoders"}
RIGHT_NAMES = [(kind, name) for kind, cases in RIGHT.items() for name in cases]
TARGETS = np.random.RandomState(1).randint(3, V, (2, 9))
MASK = (np.arange(T) < np.array([[T], [T - 7]])).astype(np.int32)


def source(pad: int) -> np.ndarray:
    """Return the tokens with the end of the second row padded."""
    return np.where(MASK == 1, TOKENS, pad)


def home(kind: tuple[str, str]) -> str:
    """Return the name of the golden file of a case that is padded on the right."""
    return "seq2seq" if kind in SEQ2SEQ else "encoders" if kind in ENCODERS else "right"


NAMES = [(family, name) for family, cases in CASES.items() for name in cases]


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the weights of a tensor: norm scales around 1, the rest around 0."""
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
    return (draws * 0.2 + (norm or name.endswith("layer_scalar"))).astype(np.float32)


def read(family: str) -> dict[str, np.ndarray]:
    """Return the golden arrays of a family, "case/what"."""
    with np.load(GOLDEN / f"{family}.npz") as file:
        return dict(file)


def about(golden: dict[str, np.ndarray], name: str) -> dict:
    """Return {"config": config.json, "shapes": {tensor: shape}} of a case."""
    return json.loads(bytes(golden[f"{name}/about"]))
