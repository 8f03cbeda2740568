"""Settings of config.json that no family has for itself: without effect, or of other models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxgen.errors import CheckpointError

# Settings without effect on logits, which any config.json may hold. Others that a family does not
# know are named in a warning: transformers ignores them as well.
COMPRESSED = ("compressed-tensors", "sparseml")  # quant_method of weights that are read
NEUTRAL = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _auto_class _commit_hash _flash_attn_2_enabled
    _model_name_or_path _name_or_path _num_labels architectures attention_dropout
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward cls_token_id compression_config
    decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label ignore_keys_at_rope_validation init_std initializer_factor
    initializer_range keys_to_ignore_at_inference label2id label_smoothing language length_penalty
    license loss_type mask_token_id max_length max_sequence_length min_length model_max_length
    model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_past output_scores
    pad_token_id predict_special_tokens prefix pretraining_tp problem_type quantization_config
    remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id seq_length suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class tokenizer_name top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id
    unsloth_fixed unsloth_version use_bfloat16 use_cache use_flash_attn
    vocab_size_or_config_json_file
    """.split()
)
# Settings that code beside transformers computes by, whatever the model_type: the values that
# change nothing, or () for those that switch something on. With another value the weights belong
# to a model that is not the family's.
ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "alibi": (),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "clip_qkv": (),
    "embedding_multiplier": (1, None),
    "layer_types": (),
    "logit_scale": (1, None),
    "logits_scaling": (1, None),
    "moe_layer_freq": (1, None),
    "n_routed_experts": (0, 1, None),
    "normalize_before": (),
    "no_rope_layers": (),
    "num_experts": (0, 1, None),
    "num_local_experts": (0, 1, None),
    "parallel_attn": (),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": (),
    "qk_layernorm": (),
    "residual_multiplier": (1, None),
    "rotary_pct": (1, None),
    "scoring_func": (),
    "scale_depth": (),
    "scale_emb": (1, None),
    "sliding_window": (),
    "static_position_embeddings": (),
    "use_alibi": (),
    "use_bidirectional_attention": (),
    "use_parallel_residual": (),
    "use_qk_norm": (),
}
DTYPES = ("float32", "float16", "bfloat16", "float64", "auto", None)  # as torch has them
CHANCE = re.compile(r"(dropout|pdrop|layerdrop)(_prob|_rate)?$")  # keys of such numbers end so
IDS = sorted(name for name in NEUTRAL if name.endswith("_token_id"))


def check_numbers(theirs: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a chance that is none, and an id that is no number.

    Nothing is computed of most of them, but then a file does not mean what it says.
    """
    for key, value in theirs.items():
        if not CHANCE.search(key) or value is None or isinstance(value, bool):
            continue
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise CheckpointError(f"{key}={value!r:.60} is no chance; give a number from 0 to 1")
    for key in IDS:
        for one in _each(theirs.get(key)):
            if type(one) is not int:
                raise CheckpointError(f"{key}={theirs[key]!r:.60} is no id; give an integer")


def odd_values(theirs: Mapping[str, Any], vocab_size: int) -> list[str]:
    """Return "key=value" of ids that the vocabulary lacks, less -1 for none, and odd dtypes."""
    outside = [
        key
        for key in IDS
        if any(one != -1 and not 0 <= one < vocab_size for one in _each(theirs.get(key)))
    ]
    odd = [f"{key}={theirs[key]!r:.40} (its vocabulary has {vocab_size} ids)" for key in outside]
    dtypes = [key for key in ("dtype", "torch_dtype") if theirs.get(key) not in DTYPES]
    return odd + [f"{key}={theirs[key]!r:.40}" for key in dtypes]


def _each(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
