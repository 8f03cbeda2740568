"""What published config.json files hold beside sizes: one row a model, its sizes shrunk.

Each row is (class of transformers, sizes, keys): transformers makes a model of the sizes, and the
keys are then written into its config.json.
"""

V, LENGTH = 40, 12
GPT2 = {"vocab_size": V, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GEMMA = LLAMA | {"head_dim": 8}
GEMMA2 = GEMMA | {"query_pre_attn_scalar": 6, "sliding_window": 5}
BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
ROBERTA = BERT | {"max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1}
T5 = {
    "vocab_size": V,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": 2,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
BART = {
    "vocab_size": V,
    "d_model": 16,
    "max_position_embeddings": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
MARIAN = BART | {"scale_embedding": True, "activation_function": "swish", "pad_token_id": 0}

_GPT2, _LLAMA = "GPT2LMHeadModel", "LlamaForCausalLM"
_MISTRAL, _QWEN2, _QWEN3 = "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
_GEMMA, _GEMMA2, _GEMMA3 = "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"
_MLM, _CLASSES = "BertForMaskedLM", "BertForSequenceClassification"
_T5, _BART, _MARIAN = "T5ForConditionalGeneration", "BartForConditionalGeneration", "MarianMTModel"

POOLER = {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
}
SUMMARY = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}
GENERATION = {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
OLD = {"output_past": True, "pruned_heads": {}, "torchscript": False, "use_bfloat16": False}
BART_OLD = {
    "_num_labels": 3,
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "classif_dropout": 0.0,
    "extra_pos_embeddings": 2,
    "force_bos_token_to_be_generated": True,
    "normalize_before": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
}
MARIAN_OLD = BART_OLD | {
    "normalize_embedding": False,
    "static_position_embeddings": True,
    "decoder_vocab_size": V,
    "bad_words_ids": [[V - 1]],
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_type": "llama3",
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"}
WINDOWS = {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}

REWARD = LLAMA | {"num_labels": 1}
LINEAR = {"factor": 4.0, "type": "linear"}
TANH = "gelu_pytorch_tanh"
SHAPES: dict[str, tuple[str, dict, dict]] = {
    "gpt2": (_GPT2, GPT2, SUMMARY | GENERATION | {"n_ctx": 32, "embd_pdrop": 0.1}),
    "distilgpt2": (_GPT2, GPT2, SUMMARY | {"_num_labels": 1, "n_ctx": 32, "n_inner": None}),
    "gpt2-medium": (_GPT2, GPT2, {"n_special": 0, "predict_special_tokens": True, "n_ctx": 32}),
    "DialoGPT": (_GPT2, GPT2, {"task_specific_params": {"conversational": {"max_length": 1000}}}),
    "gpt2 of transformers 2": (_GPT2, GPT2, OLD | {"is_decoder": False, "num_return_sequences": 1}),
    "gpt2 with a Chinese vocabulary": (
        _GPT2,
        GPT2,
        {"tokenizer_class": "BertTokenizer", "gradient_checkpointing": False},
    ),
    "gpt2 with an exact gelu": (_GPT2, GPT2, {"activation_function": "gelu", "n_inner": 64}),
    "Llama 1": (_LLAMA, LLAMA, {"max_sequence_length": 32, "pad_token_id": -1}),
    "Llama 2": (_LLAMA, LLAMA, {"pretraining_tp": 1, "rope_scaling": None, "rope_theta": 1e4}),
    "Vicuna": (
        _LLAMA,
        LLAMA,
        {"pad_token_id": 0, "rope_scaling": LINEAR},
    ),
    "Llama 3.1": (_LLAMA, LLAMA, {"rope_theta": 5e5, "rope_scaling": LLAMA3, "mlp_bias": False}),
    "Llama 3.2": (_LLAMA, LLAMA, {"rope_theta": 5e5, "rope_scaling": LLAMA3, "head_dim": 4}),
    "Llama with longrope": (
        _LLAMA,
        LLAMA,
        {
            "rope_scaling": {
                "type": "longrope",
                "factor": 2.0,
                "short_factor": [1.0, 1.0],
                "long_factor": [2.0, 2.0],
            }
        },
    ),
    "GPT-2 of CRFM": (_GPT2, GPT2, {"scale_attn_by_inverse_layer_idx": True}),
    "CodeLlama": (_LLAMA, LLAMA, {"rope_theta": 1e6, "rope_scaling": None}),
    "Yarn Llama": (_LLAMA, LLAMA, {"rope_scaling": YARN | {"finetuned": True}}),
    "Nous Llama, dynamic": (_LLAMA, LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "Qwen 2.5, dynamic": (
        _QWEN2,
        LLAMA,
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "type": "dynamic"}},
    ),
    "SmolLM2": (_LLAMA, LLAMA, {"is_llama_config": True, "rope_interleaved": False}),
    "TinyLlama": (_LLAMA, LLAMA, {"partial_rotary_factor": 1.0, "attention_bias": False}),
    "web export": (_LLAMA, LLAMA, {"transformers.js_config": {"dtype": "q4"}}),
    "not quantised": (_LLAMA, LLAMA, {"quantization_config": None, "unsloth_fixed": True}),
    "merged adapters": (_LLAMA, LLAMA, {"_name_or_path": "x", "unk_token_id": 0, "name": "y"}),
    "Phi 3.5 MoE": (
        "PhimoeForCausalLM",
        LLAMA | {"num_local_experts": 4},
        {"hidden_dropout": 0.0, "input_jitter_noise": 0.01, "lm_head_bias": False}
        | {"router_aux_loss_coef": 0.0, "sliding_window": 32, "rope_scaling": None},
    ),
    "Llama 4": (
        "Llama4ForCausalLM",
        GEMMA | {"num_local_experts": 4, "intermediate_size_mlp": 20, "use_qk_norm": False},
        {"for_llm_compressor": False, "cache_implementation": "hybrid", "no_rope_layers": []}
        | {"_attn_implementation_autoset": True, "moe_layers": None},
    ),
    "Qwen 3.5 with experts": (
        "Qwen3_5MoeForCausalLM",
        GEMMA
        | {
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
        }
        | {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
        | {"linear_value_head_dim": 8, "rms_norm_eps": 1e-3},
        {"attn_output_gate": True, "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1}
        | {"mtp_use_dedicated_embeddings": False, "mlp_only_layers": []}
        | {
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [1, 1, 0],
                "rope_theta": 10000.0,
                "rope_type": "default",
                "partial_rotary_factor": 0.25,
            }
        },
    ),
    "deepseek-coder": (
        _LLAMA,
        LLAMA,
        {"rope_scaling": {"factor": 4.0, "type": "linear", "rope_type": "linear"}},
    ),
    "saved by transformers 5": (
        _LLAMA,
        LLAMA,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mscale": 1.0}},
    ),
    "Mistral 0.1": (_MISTRAL, LLAMA | {"sliding_window": 5}, {"rope_theta": 1e4}),
    "Mistral 0.2": (_MISTRAL, LLAMA, {"sliding_window": None, "rope_theta": 1e6}),
    "Mistral Nemo": (_MISTRAL, GEMMA, {"sliding_window": None, "attention_dropout": 0.0}),
    "Zephyr": (_MISTRAL, LLAMA, {"pad_token_id": 2, "sliding_window": 16, "max_length": 20}),
    "e5-mistral": ("MistralModel", LLAMA, {"sliding_window": 16, "use_cache": False}),
    "reward model": (
        "MistralForSequenceClassification",
        LLAMA | {"num_labels": 1},
        {"id2label": {"0": "LABEL_0"}},
    ),
    "Qwen 2": (_QWEN2, LLAMA, WINDOWS | {"rope_theta": 1e6, "use_mrope": False}),
    "Qwen 2.5": (_QWEN2, LLAMA, WINDOWS | {"_attn_implementation_autoset": True}),
    "Qwen 2.5, long": (_QWEN2, LLAMA, WINDOWS | {"rope_scaling": YARN}),
    "Qwen 2.5 Math": (_QWEN2, LLAMA, {"use_sliding_window": False, "sliding_window": None}),
    "R1 distilled": (_QWEN2, LLAMA, WINDOWS | {"architectures": [_QWEN2], "eos_token_id": [3, 4]}),
    "Qwen 2 classes": ("Qwen2ForSequenceClassification", LLAMA, WINDOWS),
    "Qwen 3": (_QWEN3, GEMMA, WINDOWS | {"rope_scaling": None, "attention_bias": False}),
    "Qwen 3, long": (
        _QWEN3,
        GEMMA,
        {"rope_scaling": YARN | {"rope_type": "yarn", "attention_factor": None}},
    ),
    "Qwen 3 Embedding": (_QWEN3, GEMMA, {"use_cache": True, "sbert_version": "5.0"}),
    "Qwen 3 base": ("Qwen3Model", GEMMA, WINDOWS),
    "Gemma": (_GEMMA, GEMMA, {"hidden_act": "gelu", "hidden_activation": None}),
    "Gemma 1.1": (_GEMMA, GEMMA, {"hidden_activation": "gelu_pytorch_tanh", "rope_scaling": None}),
    "CodeGemma": (_GEMMA, GEMMA, {"attention_bias": False, "rope_theta": 1e4}),
    "Gemma 2": (_GEMMA2, GEMMA2, {"cache_implementation": "hybrid", "sliding_window_size": 5}),
    "Gemma 2 27B": (
        _GEMMA2,
        GEMMA2,
        {"hidden_act": TANH, "torch_dtype": "bfloat16"},
    ),
    "Gemma 3 1B": (
        _GEMMA3,
        GEMMA2,
        {"sliding_window_pattern": 2, "layer_types": None, "rope_local_base_freq": 1e4},
    ),
    "Gemma 3 270M": (_GEMMA3, GEMMA2, {"_sliding_window_pattern": 2, "attention_bias": False}),
    "bert-base-uncased": (
        _MLM,
        BERT,
        {"gradient_checkpointing": False, "classifier_dropout": None},
    ),
    "bert-base-multilingual": (_MLM, BERT, POOLER | {"position_embedding_type": "absolute"}),
    "bert-base-chinese": (_MLM, BERT, POOLER | {"layer_norm_eps": 1e-12}),
    "for pretraining": ("BertForPreTraining", BERT, {"model_max_length": 512}),
    "nlptown sentiment": (_CLASSES, BERT, POOLER | {"_num_labels": 2, "finetuning_task": "stars"}),
    "finbert": (_CLASSES, BERT | {"num_labels": 3}, {"_name_or_path": "/home/ubuntu/finbert"}),
    "cross encoder": (
        _CLASSES,
        BERT | {"num_labels": 1},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ),
    "cross encoder, newer": (
        _CLASSES,
        BERT | {"num_labels": 1},
        {"sentence_transformers": {"activation_fn": "Identity", "version": "4.0"}},
    ),
    "bert squad": ("BertForQuestionAnswering", BERT, OLD),
    "bert-base-NER": (
        "BertForTokenClassification",
        BERT | {"num_labels": 9},
        POOLER | {"_num_labels": 9, "output_past": True},
    ),
    "xlm-r style NER": ("RobertaForTokenClassification", ROBERTA | {"num_labels": 5}, OLD),
    "all-MiniLM": ("BertModel", BERT, {"gradient_checkpointing": False, "use_cache": True}),
    "bge": ("BertModel", BERT, {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}),
    "roberta-base": ("RobertaForMaskedLM", ROBERTA, {"layer_norm_eps": 1e-5, "bos_token_id": 0}),
    "distilroberta": ("RobertaForMaskedLM", ROBERTA, {"output_past": True}),
    "codebert": ("RobertaModel", ROBERTA, OLD | {"layer_norm_eps": 1e-5}),
    "roberta-large-mnli": (
        "RobertaForSequenceClassification",
        ROBERTA | {"num_labels": 3},
        {"_num_labels": 3, "hidden_act": "gelu"},
    ),
    "roberta-base-squad2": (
        "RobertaForQuestionAnswering",
        ROBERTA,
        {"language": "english", "name": "Roberta", "gradient_checkpointing": False},
    ),
    "twitter-roberta": (
        "RobertaForSequenceClassification",
        ROBERTA,
        {"position_embedding_type": "absolute", "problem_type": "multi_label_classification"},
    ),
    "t5-small": (_T5, T5, {"n_positions": 512, "output_past": True, "initializer_factor": 1.0}),
    "t5-3b": (_T5, T5, {"architectures": ["T5WithLMHeadModel"], "num_decoder_layers": None}),
    "flan-t5": (
        _T5,
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"dense_act_fn": "gelu_new", "is_gated_act": True, "n_positions": 512},
    ),
    "t5-v1_1": (
        _T5,
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"use_cache": True, "output_past": True},
    ),
    "byt5": (
        _T5,
        T5 | {"num_layers": 3, "num_decoder_layers": 1, "feed_forward_proj": "gated-gelu"},
        {"gradient_checkpointing": False, "tokenizer_class": "ByT5Tokenizer"},
    ),
    "codet5": (_T5, T5, {"id2label": {"0": "LABEL_0"}, "bos_token_id": 1, "eos_token_id": 2}),
    "sentence-t5": ("T5EncoderModel", T5, {"output_past": True, "n_positions": 512}),
    "bart-base": (_BART, BART, BART_OLD | {"num_hidden_layers": 2, "no_repeat_ngram_size": 3}),
    "bart-large-cnn": (_BART, BART, BART_OLD | {"output_past": True, "prefix": " "}),
    "bart-large-xsum": (
        _BART,
        BART,
        {"replacing_rate": 0, "save_step": 58, "student_decoder_layers": None},
    ),
    "bart-large-mnli": (
        "BartForSequenceClassification",
        BART | {"num_labels": 3},
        BART_OLD | {"num_hidden_layers": 2},
    ),
    "distilbart": (_BART, BART | {"decoder_layers": 1}, BART_OLD | {"total_flos": 1.5e17}),
    "opus-mt": (_MARIAN, MARIAN, MARIAN_OLD),
    "opus-mt-tc-big": (_MARIAN, MARIAN, {"share_encoder_decoder_embeddings": True}),
}

FOUR = LLAMA | {"num_hidden_layers": 4, "sliding_window": 5}
NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
FALCON = {k: v for k, v in NEOX.items() if k != "intermediate_size"}
OPT = FALCON | {"ffn_dim": 24, "word_embed_proj_dim": 16}
BLOOM = {"vocab_size": V, "hidden_size": 16, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
MPT = {"vocab_size": V, "d_model": 16, "n_layers": 2, "n_heads": 4, "pad_token_id": 0}
LONGROPE = {"long_factor": [1.5, 4.0], "short_factor": [1.0, 1.1]}
FULL, LOCAL = "full_attention", "sliding_attention"
MODERN = NEOX | {"num_hidden_layers": 4, "bos_token_id": 1, "eos_token_id": 2, "local_attention": 6}
MODERN_OLD = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "rope_parameters": None}
MODERN_OLD |= {"global_attn_every_n_layers": 3, "local_attention": 6, "norm_bias": False}
SHAPES |= {
    "SmolLM3": (
        "SmolLM3ForCausalLM",
        LLAMA,
        {"layer_types": [FULL] * 2, "max_window_layers": 28, "no_rope_layer_interval": 4}
        | {"no_rope_layers": [1, 0], "pretraining_tp": 2, "rope_scaling": None, "rope_theta": 5e6}
        | {"sliding_window": None, "use_sliding_window": False, "mlp_bias": False},
    ),
    "OLMo 2": ("Olmo2ForCausalLM", LLAMA, {"rope_scaling": None, "rope_theta": 500000}),
    "OLMo 3": (
        "Olmo3ForCausalLM",
        FOUR,
        {"rope_scaling": YARN | {"rope_type": "yarn", "attention_factor": 1.2}, "rope_theta": 5e5}
        | {"layer_types": [LOCAL] * 3 + [FULL], "sliding_window": 6},
    ),
    "Granite 3": (
        "GraniteForCausalLM",
        LLAMA,
        {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}
        | {"attention_multiplier": 0.0078125, "attention_dropout": 0.1, "rope_theta": 1e7},
    ),
    "EXAONE 4 1.2B": (
        "Exaone4ForCausalLM",
        LLAMA | {"sliding_window": None, "layer_types": [FULL] * 2},
        {"sliding_window_pattern": None, "rope_scaling": LLAMA3, "rope_theta": 1e6},
    ),
    "EXAONE 4 32B": (
        "Exaone4ForCausalLM",
        FOUR,
        {"sliding_window_pattern": "LLLG", "layer_types": [LOCAL] * 3 + [FULL]},
    ),
    "Seed-OSS": (
        "SeedOssForCausalLM",
        GEMMA,
        {"residual_dropout": 0.1, "rope_scaling": {"rope_type": "default"}, "rope_theta": 1e7},
    ),
    "StableLM 2": (
        "StableLmForCausalLM",
        LLAMA | {"partial_rotary_factor": 0.5},
        {"rope_theta": 10000, "partial_rotary_factor": 0.5, "hidden_dropout": 0.0},
    ),
    "Phi 2": (
        "PhiForCausalLM",
        LLAMA,
        {"qk_layernorm": False, "resid_pdrop": 0.1, "partial_rotary_factor": 0.5},
    ),
    "Phi 3 mini": ("Phi3ForCausalLM", LLAMA, {"sliding_window": 2047, "attention_bias": False}),
    "Phi 3 mini, long": (
        "Phi3ForCausalLM",
        LLAMA,
        {"rope_scaling": LONGROPE | {"type": "su"}, "original_max_position_embeddings": 8},
    ),
    "Phi 4 mini": (
        "Phi3ForCausalLM",
        GEMMA | {"head_dim": 4, "tie_word_embeddings": True},
        {"rope_scaling": {"long_factor": [4.0], "short_factor": [1.5], "type": "longrope"}}
        | {"original_max_position_embeddings": 16, "partial_rotary_factor": 0.5}
        | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False}
        | {"sliding_window": 262144},
    ),
    "Command R": ("CohereForCausalLM", LLAMA, {"model_max_length": 131072, "use_qk_norm": False}),
    "Command R7B": (
        "Cohere2ForCausalLM",
        FOUR,
        {"layer_switch": 4, "order_of_interleaved_layers": "local_attn_first", "rotary_pct": 1.0}
        | {"position_embedding_type": "rope_gptj", "use_embedding_sharing": True, "head_dim": 4}
        | {"use_gated_activation": True, "use_parallel_block": True, "use_qk_norm": False}
        | {"cache_implementation": "hybrid", "rope_scaling": None, "logit_scale": 0.25},
    ),
    "Pythia": (
        "GPTNeoXForCausalLM",
        NEOX | {"rotary_pct": 0.5},
        {"classifier_dropout": 0.1, "rope_scaling": None, "rotary_pct": 0.5},
    ),
    "GPT-J": (
        "GPTJForCausalLM",
        GPT2 | {"rotary_dim": 2},
        SUMMARY | GENERATION | {"rotary": True, "scale_attn_weights": True, "n_inner": None},
    ),
    "Falcon 7B": (
        "FalconForCausalLM",
        FALCON,
        {"apply_residual_connection_post_layernorm": False, "multi_query": True, "alibi": False},
    ),
    "Falcon 2 11B": (
        "FalconForCausalLM",
        FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True}
        | {"num_ln_in_parallel_attn": 1},
        {"ff_factor": 4, "ffn_hidden_size": 64, "rope_theta": 500042.0},
    ),
    "StarCoder 2": (
        "Starcoder2ForCausalLM",
        LLAMA,
        {"activation_function": "gelu", "attention_softmax_in_fp32": True, "mlp_type": "default"}
        | {"norm_type": "layer_norm", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True}
        | {"scale_attention_softmax_in_fp32": True, "sliding_window": 16, "residual_dropout": 0.1},
    ),
    "OPT": (
        "OPTForCausalLM",
        OPT,
        {"activation_dropout": 0.0, "layerdrop": 0.0, "prefix": "</s>", "dropout": 0.1}
        | {"_remove_final_layer_norm": False, "do_layer_norm_before": True},
    ),
    "BLOOM": (
        "BloomForCausalLM",
        BLOOM,
        {"attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "offset_alibi": 100}
        | {"masked_softmax_fusion": True, "pretraining_tp": 1, "seq_length": 2048, "n_inner": None}
        | {"skip_bias_add": True, "skip_bias_add_qkv": False, "unk_token_id": 0},
    ),
    "MPT": (
        "MptForCausalLM",
        MPT,
        {"attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "qk_ln": False}
        | {"attn_pdrop": 0, "attn_type": "multihead_attention", "clip_qkv": None}
        | {"attn_uses_sequence_id": False, "prefix_lm": False, "softmax_scale": None}}
        | {"embedding_fraction": 1.0, "init_device": "cpu", "learned_pos_emb": True, "verbose": 0}
        | {"no_bias": True, "norm_type": "low_precision_layernorm", "expansion_ratio": 4}
        | {"init_config": {"name": "kaiming_normal_"}, "tokenizer_name": "gpt-neox"},
    ),
    "ModernBERT": (
        "ModernBertForMaskedLM",
        MODERN,
        MODERN_OLD | {"position_embedding_type": "absolute", "reference_compile": True},
    ),
    "ModernBERT, as it was saved first": (
        "ModernBertForMaskedLM",
        MODERN,
        MODERN_OLD
        | {"layer_types": None, "layer_norm_eps": 1e-5, "deterministic_flash_attn": False},
    ),
    "gte and nomic of ModernBERT": (
        "ModernBertModel",
        MODERN,
        MODERN_OLD | {"classifier_pooling": "mean", "repad_logits_with_grad": False},
    ),
    "Granite Embedding R2": (
        "ModernBertModel",
        MODERN | {"classifier_pooling": "cls"},
        MODERN_OLD | {"initializer_cutoff_factor": 2.0, "global_rope_theta": 80000.0},
    ),
    "mmBERT": (
        "ModernBertForMaskedLM",
        MODERN,
        MODERN_OLD | {"position_embedding_type": "sans_pos", "local_rope_theta": 160000.0}
        | {"sparse_pred_ignore_index": -100, "sparse_prediction": True},
    ),
    "a reranker of ModernBERT": (
        "ModernBertForSequenceClassification",
        MODERN | {"num_labels": 1, "classifier_pooling": "mean", "classifier_activation": "silu"},
        MODERN_OLD | {"sentence_transformers": {"activation_fn": "Sigmoid", "version": "4.1"}},
    ),
    "Ettin's encoders": (
        "ModernBertForMaskedLM", MODERN, MODERN_OLD | {"causal_mask": False, "is_causal": False},
    ),
    "Ettin's decoders": (
        "ModernBertDecoderForCausalLM",
        MODERN,
        MODERN_OLD | {"causal_mask": True, "is_causal": True, "sliding_window": 3},
    ),
    "Helium": ("HeliumForCausalLM", GEMMA | {"head_dim": 4}, {"rope_theta": 1e5}),
}  # fmt: skip

# (class, sizes, keys, what the refusal names): each of these changes a result, or may.
MLA = LLAMA | {"num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 8, "n_group": 1}
MLA |= {"qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4, "n_routed_experts": 4}
MLA |= {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "topk_group": 1}
REFUSED: dict[str, tuple[str, dict, dict, str]] = {
    "relative keys": (
        _MLM, BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    "a causal BERT": (_MLM, BERT, {"is_decoder": True}, "is_decoder"),
    "pruned heads": (_MLM, BERT, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "two names of a size": (_GPT2, GPT2, {"hidden_size": 32}, "hidden_size=32 but n_embd=16"),
    "quantised": (_LLAMA, LLAMA, {"quantization_config": {"bits": 4}}, "quantised"),
    "quantised by MLX": (_LLAMA, LLAMA, {"quantization": {"bits": 4}}, "quantization: quantised"),
    "half of each head": (
        _LLAMA, LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "a window for Llama": (_LLAMA, LLAMA, {"sliding_window": 5}, "sliding_window=5"),
    "both sides": (_QWEN2, LLAMA, {"is_causal": False}, "is_causal=False"),
    "Gemma of both sides": (
        _GEMMA3, GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "clipped projections": (
        "MptForCausalLM", MPT, {"attn_config": {"clip_qkv": 6}}, "attn_config.clip_qkv=6"),
    "other slopes": (
        "MptForCausalLM", MPT, {"attn_config": {"alibi_bias_max": 4}}, "alibi_bias_max=4"),
    "biases without those of norms": (
        "CohereForCausalLM", LLAMA, {"attention_bias": True}, "attention_bias=True"),
    "a block of no Falcon": (
        "FalconForCausalLM", FALCON, {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2"),
    "queries that don't grow": (
        "Ministral3ForCausalLM", LLAMA, {"rope_parameters": {"rope_type": "default"}},
        "llama_4_scaling_beta"),
    "ALiBi for Llama": (_LLAMA, LLAMA, {"alibi": True}, "alibi=True"),
    "norms of queries for Llama": (_LLAMA, LLAMA, {"use_qk_norm": True}, "use_qk_norm=True"),
    "layers that don't turn for Llama": (
        _LLAMA, LLAMA, {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    "experts": (_MISTRAL, LLAMA, {"num_local_experts": 8}, "num_local_experts=8"),
    "width multipliers": (_LLAMA, LLAMA, {"residual_multiplier": 0.2}, "residual_multiplier=0.2"),
    "another gate": (_T5, T5, {"is_gated_act": True}, "is_gated_act=True"),
    "norm before": (_BART, BART, {"normalize_before": True}, "normalize_before=True"),
    "waves in BART": (
        _BART, BART, {"static_position_embeddings": True}, "static_position_embeddings"),
    "DeepSeek-V3 that chooses by softmax": (
        "DeepseekV3ForCausalLM", MLA, {"scoring_func": "softmax"}, "scoring_func='softmax'"),
    "DeepSeek-V3 without its bias": (
        "DeepseekV3ForCausalLM", MLA, {"topk_method": "greedy"}, "topk_method='greedy'"),
    "DeepSeek-V2 with normalised weights": (
        "DeepseekV2ForCausalLM", MLA, {"norm_topk_prob": True}, "norm_topk_prob=True"),
    "experts in every other layer": (
        "DeepseekV2ForCausalLM", MLA, {"moe_layer_freq": 2}, "moe_layer_freq=2"),
    "a score of experts for Mixtral": (
        "MixtralForCausalLM", LLAMA, {"scoring_func": "sigmoid"}, "scoring_func='sigmoid'"),
    "the next sentence": (
        _MLM, BERT, {"architectures": ["BertForNextSentencePrediction"]},
        "BertForNextSentencePrediction"),
}  # fmt: skip
