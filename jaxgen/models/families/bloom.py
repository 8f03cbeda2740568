"""BLOOM (Le Scao et al. 2022): ALiBi, and a norm of the embeddings."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, gpt_neox
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import Row, linear, norm

# What Falcon has as well.
SHARED: dict[str, Any] = {
    "prefix": "transformer.",
    "layer": "transformer.h.{}.",
    "only": {"apply_residual_connection_post_layernorm": (False,)},
    "rows": (
        Row("transformer.word_embeddings.weight", ("embed/tokens",), "V,D"),
        *norm("transformer.word_embeddings_layernorm", "embed/norm"),
        *norm("transformer.ln_f", "final_norm"),
        Row("lm_head.weight", ("unembed/tokens",), "V,D"),
    ),
    "head_rows": decoders.CLASSIFIER,
    "copies": {"lm_head.weight": "transformer.word_embeddings.weight"},
}
SUBLAYERS = (
    *linear("self_attention.query_key_value", gpt_neox.QKV, "K*GH,D"),
    *(*linear("self_attention.dense", "attn/o", "D,NH"), *gpt_neox.MLP),
)
SIZES = {
    "vocab_size": "vocab_size",
    "context": "seq_length",
    "layers": "n_layer",
    "d_model": "hidden_size",
    "heads": "n_head",
    "norm_epsilon": "layer_norm_epsilon",
    "init_std": "initializer_range",
}

FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    sizes=SIZES,
    choices={"norm": "layer", "positions": "alibi", "feed": "gelu_tanh", "embed.norm": "norm"},
    defaults={"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True}
    | {"hidden_dropout": 0.0, "attention_dropout": 0.0, "seq_length": 2048},
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head"}
    | {"num_hidden_layers": "n_layer"},
    ignored=frozenset(
        "attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi "
        "skip_bias_add skip_bias_add_qkv slow_but_exact unk_token_id".split()
    ),
    quirks=gpt_neox.QUIRKS,
    layer_rows=(
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "feed_norm"),
        *SUBLAYERS,
    ),
    heads=decoders.heads("Bloom", *decoders.HEADS),
    **SHARED,
)
