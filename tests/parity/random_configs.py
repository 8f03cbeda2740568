"""Random configurations of all families: sizes of `published`, and any of these keys."""

import published

from jaxgen.models.families import FAMILIES

ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu", "quick_gelu"]
ROPE = {
    "rope_theta": [100.0, 1e6],
    "rope_scaling": [
        None,
        {"type": "linear", "factor": 2.0},
        {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 3, "original_max_position_embeddings": 4},
        published.LLAMA3,
        published.LLAMA3 | {"low_freq_factor": 2.0, "finetuned": True},
        published.YARN,
        published.YARN | {"beta_fast": 16, "beta_slow": 2},
        published.YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
        published.YARN | {"attention_factor": 0.8, "mscale": 2.0},
        published.YARN | {"truncate": False},
    ],
    "partial_rotary_factor": [1.0, 0.5],
    "original_max_position_embeddings": [8],
}
ANY = {
    "initializer_range": [0.01],
    "tie_word_embeddings": [True, False],
    "output_past": [True],
    "_num_labels": [5],
    "pruned_heads": [{}, {"0": [1]}],
    "is_decoder": [False, True],
    "add_cross_attention": [False],
    "chunk_size_feed_forward": [0, 3],
    "use_cache": [False],
    "nobody_knows": [1],
    "is_causal": [True, False],
    "task_specific_params": [{"a": {"max_length": 3}}],
}
LLAMA = ROPE | {
    "num_key_value_heads": [1, 4],
    "head_dim": [4, 8],
    "hidden_act": ["silu", "gelu_pytorch_tanh", "gelu"],
    "rms_norm_eps": [1e-2],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "attention_dropout": [0.1],
    "pretraining_tp": [2],
    "sliding_window": [None, 4],
    "layer_types": [["full_attention"] * 2, ["sliding_attention", "full_attention"]],
}
QWEN = LLAMA | {"use_sliding_window": [True, False], "max_window_layers": [0, 1]}
GEMMA = {k: v for k, v in LLAMA.items() if k != "hidden_act"} | {
    "hidden_activation": [None, "gelu_pytorch_tanh"],
    "hidden_act": ["gelu", "gelu_pytorch_tanh"],
    "use_bidirectional_attention": [None, False, True],
}
GEMMA2 = {k: v for k, v in GEMMA.items() if k != "sliding_window"} | {
    "hidden_activation": ["gelu_pytorch_tanh", "gelu"],
    "query_pre_attn_scalar": [3, 16],
    "sliding_window": [4, 7],
    "attn_logit_softcapping": [None, 1.5],
    "final_logit_softcapping": [None, 2.0],
    "sliding_window_pattern": [2],
}
BERT = {
    "hidden_act": ACTIVATIONS,
    "layer_norm_eps": [1e-3],
    "type_vocab_size": [1, 3],
    "position_embedding_type": ["absolute", "relative_key"],
    "classifier_dropout": [0.2],
    "directionality": ["bidi"],
    "problem_type": ["regression"],
}
BART = {
    "activation_function": ACTIVATIONS,
    "scale_embedding": [True, False],
    "static_position_embeddings": [True, False],
    "normalize_before": [True, False],
    "normalize_embedding": [True, False],
    "add_final_layer_norm": [True, False],
    "add_bias_logits": [True, False],
    "encoder_ffn_dim": [24, 32],
    "decoder_attention_heads": [2, 4],
    "num_hidden_layers": [2],
    "encoder_layerdrop": [0.1],
    "tie_encoder_decoder": [False],
}
# Keys of which most values are refused: drawn seldom, or little else would be compared.
MOSTLY_REFUSED = {
    *("add_bias_logits", "add_final_layer_norm", "decoder_attention_heads", "encoder_ffn_dim"),
    *("is_causal", "is_decoder", "is_gated_act", "layer_types", "normalize_before"),
    *("partial_rotary_factor", "position_embedding_type", "pruned_heads", "sliding_window"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "static_position_embeddings"),
}
OPTIONAL: dict[str, tuple[dict, dict[str, list]]] = {
    "gpt2": (
        published.GPT2,
        {
            "n_inner": [None, 40],
            "activation_function": ACTIVATIONS,
            "layer_norm_epsilon": [1e-3],
            "scale_attn_weights": [True, False],
            "scale_attn_by_inverse_layer_idx": [True, False],
            "reorder_and_upcast_attn": [True, False],
            "n_ctx": [32],
            "hidden_size": [16],
            "num_attention_heads": [4, 2],
        },
    ),
    "llama": (published.LLAMA, LLAMA),
    "mistral": (published.LLAMA, LLAMA),
    "qwen2": (published.LLAMA, QWEN),
    "qwen3": (published.GEMMA, QWEN),
    "gemma": (published.GEMMA, GEMMA),
    "gemma2": (published.GEMMA2, GEMMA2),
    "gemma3_text": (
        published.GEMMA2,
        GEMMA2 | {"rope_local_base_freq": [100.0], "_sliding_window_pattern": [2]},
    ),
    "bert": (published.BERT, BERT),
    "roberta": (published.ROBERTA, BERT | {"pad_token_id": [0, 1, 3]}),
    "t5": (
        published.T5,
        {
            "feed_forward_proj": ["relu", "gated-gelu", "gated-silu", "gelu", "gated-relu"],
            "num_decoder_layers": [None, 1],
            "layer_norm_epsilon": [1e-2],
            "scale_decoder_outputs": [True, False],
            "is_gated_act": [True, False],
            "dense_act_fn": ["gelu_new", "relu"],
            "n_positions": [512],
            "num_hidden_layers": [2],
            "d_kv": [4],
        },
    ),
    "bart": (published.BART, BART),
    "marian": (published.MARIAN, BART | {"share_encoder_decoder_embeddings": [True, False]}),
}

FACTORS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
NOT_PARTIAL = {k: v for k, v in LLAMA.items() if k != "partial_rotary_factor"}
SWITCHES = {"hidden_act": ACTIVATIONS, "layer_norm_eps": [1e-3]} | ROPE
OPTIONAL |= {
    "smollm3": (
        published.LLAMA,
        NOT_PARTIAL
        | {"no_rope_layers": [[1, 0], [0, 0], None], "no_rope_layer_interval": [1, 2]}
        | {"use_sliding_window": [True]},
    ),
    "olmo2": (published.LLAMA, NOT_PARTIAL),
    "olmo3": (published.FOUR, NOT_PARTIAL),
    "granite": (published.LLAMA, NOT_PARTIAL | {key: [0.3, 1, 2] for key in FACTORS}),
    "exaone4": (published.FOUR, NOT_PARTIAL | {"sliding_window_pattern": [2, "LG"]}),
    "seed_oss": (published.GEMMA, NOT_PARTIAL | {"attention_out_bias": [True, False]}),
    "helium": (published.GEMMA | {"head_dim": 4}, NOT_PARTIAL),
    "phi": (published.LLAMA, SWITCHES | {"qk_layernorm": [True, False]}),
    "phi3": (
        published.LLAMA,
        {"sliding_window": [None, 4], "hidden_act": ["silu", "gelu"], "rope_theta": [100.0]}
        | {"rope_scaling": [None, published.LONGROPE | {"type": "su"}], "lm_head_bias": [True]},
    ),
    "stablelm": (
        published.LLAMA | {"partial_rotary_factor": 0.5},
        {"use_qkv_bias": [True], "use_parallel_residual": [True], "qk_layernorm": [True]},
    ),
    "cohere": (published.LLAMA, NOT_PARTIAL | {"use_qk_norm": [True], "logit_scale": [1, 0.3]}),
    "cohere2": (published.FOUR, NOT_PARTIAL | {"logit_scale": [0.3]}),
    "gpt_neox": (
        published.NEOX | {"rotary_pct": 0.5},
        {"hidden_act": ACTIVATIONS, "use_parallel_residual": [True, False]}
        | {"attention_bias": [True, False], "layer_norm_eps": [1e-3]},
    ),
    "gptj": (
        published.GPT2 | {"rotary_dim": 2},
        {"activation_function": ACTIVATIONS, "rotary_dim": [2, 4, None], "n_inner": [None, 40]},
    ),
    "falcon": (
        published.FALCON,
        {"alibi": [True], "bias": [True], "multi_query": [True, False], "activation": ACTIVATIONS}
        | {"new_decoder_architecture": [True], "parallel_attn": [True, False]}
        | {"num_ln_in_parallel_attn": [1, 2], "num_kv_heads": [None, 2]},
    ),
    "starcoder2": (
        published.LLAMA,
        {"hidden_act": ACTIVATIONS, "use_bias": [False], "sliding_window": [None, 4]} | ROPE,
    ),
    "opt": (
        published.OPT,
        {"activation_function": ACTIVATIONS, "do_layer_norm_before": [True, False]}
        | {"enable_bias": [False], "_remove_final_layer_norm": [True]},
    ),
    "bloom": (
        published.BLOOM,
        {"apply_residual_connection_post_layernorm": [True], "layer_norm_epsilon": [1e-3]},
    ),
    "mpt": (
        published.MPT,
        {"attn_config": [{"softmax_scale": 0.3}, {"clip_qkv": 0.5}, {"qk_ln": True}]}
        | {"no_bias": [False], "logit_scale": [0.5]},
    ),
    "nanochat": (published.LLAMA, {"hidden_act": ACTIVATIONS, "attention_bias": [True]}),
    "ministral3": (
        published.GEMMA,
        {"sliding_window": [None, 4], "hidden_act": ["silu", "gelu"]},
    ),
}
MODERN = {
    "hidden_activation": ["gelu", "silu", "relu", "gelu_new"],
    "classifier_activation": ["gelu", "silu", "relu"],
    "norm_eps": [1e-3],
    "layer_types": [["sliding_attention"] * 4, ["full_attention"] * 2 + ["sliding_attention"] * 2],
    "local_attention": [4, 7],
    "sliding_window": [2],
    "global_rope_theta": [100.0],
    "local_rope_theta": [50.0, 160000.0],
    "rope_scaling": [None, {"type": "linear", "factor": 2.0}],
    **{f"{part}_bias": [True, False] for part in ("attention", "mlp", "norm", "classifier")},
    "decoder_bias": [False],
    "position_embedding_type": ["absolute", "sans_pos"],
    "sparse_prediction": [True],
}
NARROW = published.BERT | {"embedding_size": 8}
OPTIONAL |= {
    "modernbert": (published.MODERN, MODERN | {"classifier_pooling": ["mean"]}),
    "modernbert-decoder": (published.MODERN, MODERN),
    "distilbert": (
        {"vocab_size": published.V, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
        {"activation": ACTIVATIONS, "sinusoidal_pos_embds": [True], "dropout": [0.2]},
    ),
    "mpnet": (published.ROBERTA, BERT | {"relative_attention_num_buckets": [32, 16]}),
    "electra": (NARROW, BERT | {"embedding_size": [16]}),
    "albert": (
        NARROW,
        BERT | {"num_hidden_groups": [1, 2], "inner_group_num": [1, 2], "embedding_size": [16]},
    ),
    "deberta-v2": (
        published.BERT
        | {"relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p"},
        BERT
        | {"pos_att_type": [["c2p"], ["p2c"], []], "position_buckets": [8, -1]}
        | {
            "max_relative_positions": [6, -1],
            "share_att_key": [True],
            "norm_rel_ebd": ["layer_norm"],
        }
        | {"conv_kernel_size": [0, 3], "relative_attention": [False]}
        | {"pooler_hidden_act": ["tanh", "gelu"], "position_biased_input": [True]},
    ),
}


# Classes that transformers has no more, or whose logits it gives in another shape.
OTHERS = ("T5WithLMHeadModel", "ElectraForPreTraining")


def drawn(rng, model_type):
    """Return (class of transformers, sizes and keys) of one random configuration."""
    family = FAMILIES[model_type]
    names = [family.architecture, *(n for n in family.heads if n not in OTHERS)]
    sizes, optional = OPTIONAL[model_type]
    optional = ANY | optional
    keys = {k: optional[k][rng.integers(len(optional[k]))] for k in sorted(optional)}
    chosen = {
        k: v for k, v in keys.items() if rng.random() < (0.02 if k in MOSTLY_REFUSED else 0.18)
    }
    return str(rng.choice(names)), sizes, chosen
