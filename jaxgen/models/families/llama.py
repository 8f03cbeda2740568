"""Llama 2 and 3 (Touvron et al. 2023, Meta 2024); the other families differ from it in little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.quirks import GATED, ROPE, SPANS, TIED, token_classes

SIZES = {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
    "init_std": "initializer_range",
}
CHOICES = {"norm": "rms", "positions": "rope", "biases": "none"}
DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
ROWS = (
    Row("model.embed_tokens.weight", ("embed/tokens",), "V,D"),
    Row("model.norm.weight", ("final_norm/scale",), "D"),
    Row("lm_head.weight", ("unembed/tokens",), "V,D"),
)
SCORE = {
    "classes": (Row("score.weight", ("head/out",), "C,D"),),
    "token_classes": token_classes("score"),
    "spans": SPANS,
}
SUBLAYERS = (
    Row("self_attn.q_proj.weight", ("attn/q",), "NH,D"),
    Row("self_attn.k_proj.weight", ("attn/k",), "KH,D"),
    Row("self_attn.v_proj.weight", ("attn/v",), "KH,D"),
    Row("self_attn.o_proj.weight", ("attn/o",), "D,NH"),
    Row("self_attn.q_proj.bias", ("attn/q_bias",), "NH"),
    Row("self_attn.k_proj.bias", ("attn/k_bias",), "KH"),
    Row("self_attn.v_proj.bias", ("attn/v_bias",), "KH"),
    Row("self_attn.o_proj.bias", ("attn/o_bias",), "D"),
    Row("self_attn.q_norm.weight", ("attn/q_norm/scale",), "H"),
    Row("self_attn.k_norm.weight", ("attn/k_norm/scale",), "H"),
    Row("mlp.gate_proj.weight", ("feed/gate",), "F,D"),
    Row("mlp.up_proj.weight", ("feed/up",), "F,D"),
    Row("mlp.down_proj.weight", ("feed/down",), "D,F"),
    Row("mlp.gate_proj.bias", ("feed/gate_bias",), "F"),
    Row("mlp.up_proj.bias", ("feed/up_bias",), "F"),
    Row("mlp.down_proj.bias", ("feed/down_bias",), "D"),
)
LAYER_ROWS = (
    Row("input_layernorm.weight", ("attn_norm/scale",), "D"),
    Row("post_attention_layernorm.weight", ("feed_norm/scale",), "D"),
    *SUBLAYERS,
)
# Names and tensors that do not differ from family to family.
SHARED: dict[str, Any] = {
    "prefix": "model.",
    "layer": "model.layers.{}.",
    "sizes": SIZES,
    "rows": ROWS,
    "copies": {"lm_head.weight": "model.embed_tokens.weight"},
    "ignored_tensors": ("model.layers.*.self_attn.rotary_emb.inv_freq",),
}
_BIASES = {(False, False): "none", (True, False): "attention", (True, True): "all"}


def _read_biases(theirs: Mapping[str, Any]) -> dict[str, Any]:
    pair = theirs["attention_bias"], theirs["mlp_bias"]
    if pair not in _BIASES:
        raise CheckpointError(f"attention_bias={pair[0]!r} with mlp_bias={pair[1]!r} is not known")
    return {"biases": _BIASES[pair]}


def _write_biases(config: ModelConfig) -> dict[str, Any]:
    every = config.biases == "all"
    return {"attention_bias": every or config.biases == "attention", "mlp_bias": every}


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    heads={
        "LlamaForSequenceClassification": "classes",
        "LlamaForTokenClassification": "token_classes",
        "LlamaForQuestionAnswering": "spans",
        "LlamaModel": "none",
    },
    moved={"spans": "transformer."},
    head_rows=SCORE,
    choices=CHOICES,
    defaults=DEFAULTS | {"attention_bias": False, "mlp_bias": False},
    quirks=(TIED, GATED, ROPE, Quirk(("attention_bias", "mlp_bias"), _read_biases, _write_biases)),
    layer_rows=LAYER_ROWS,
    **SHARED,
)
