"""What Llama's kin have in common: names of settings and of layers, and the heads they have."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families.quirks import SPANS, token_classes
from jaxgen.models.families.rows import Row, linear, norm

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
    *norm("model.norm", "final_norm"),
    Row("lm_head.weight", ("unembed/tokens",), "V,D"),
)
HEADS = {
    "classes": "SequenceClassification",
    "token_classes": "TokenClassification",
    "spans": "QuestionAnswering",
}
SCORE = {
    "classes": (Row("score.weight", ("head/out",), "C,D"),),
    "token_classes": token_classes("score"),
    "spans": SPANS,
}
# As SCORE, where the head of a token's class has another name than that of a text's.
CLASSIFIER = SCORE | {"token_classes": token_classes("classifier")}


def gated(name: str) -> tuple[Row, ...]:
    """Return the rows of a gated feed-forward of this name."""
    return (
        *linear(f"{name}.gate_proj", "feed/gate", "F,D"),
        *linear(f"{name}.up_proj", "feed/up", "F,D"),
        *linear(f"{name}.down_proj", "feed/down", "D,F"),
    )


PROJECTIONS = (
    *linear("self_attn.q_proj", "attn/q", "NH,D"),
    *linear("self_attn.k_proj", "attn/k", "KH,D"),
    *linear("self_attn.v_proj", "attn/v", "KH,D"),
    *linear("self_attn.o_proj", "attn/o", "D,NH"),
    *gated("mlp"),
)
SUBLAYERS = (
    *PROJECTIONS,
    Row("self_attn.q_norm.weight", ("attn/q_norm/scale",), "H"),
    Row("self_attn.k_norm.weight", ("attn/k_norm/scale",), "H"),
)
NORMS = (
    *norm("input_layernorm", "attn_norm"),
    *norm("post_attention_layernorm", "feed_norm"),
)
LAYER_ROWS = (*NORMS, *SUBLAYERS)
# Names and tensors that do not differ from family to family.
SHARED: dict[str, Any] = {
    "prefix": "model.",
    "layer": "model.layers.{}.",
    "sizes": SIZES,
    "rows": ROWS,
    "copies": {"lm_head.weight": "model.embed_tokens.weight"},
    "ignored_tensors": ("model.layers.*.self_attn.rotary_emb.inv_freq",),
}


def heads(name: str, *kinds: str) -> dict[str, str]:
    """Return the architectures of a family beside its first, and the heads they have."""
    return {f"{name}For{HEADS[kind]}": kind for kind in kinds} | {f"{name}Model": "none"}
