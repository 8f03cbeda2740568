"""Phi 1, 1.5 and 2 (Gunasekar et al. 2023): attention and feed-forward side by side."""

from __future__ import annotations

from jaxgen.models.families import gpt2, llama
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import TIED, dropout, one_of
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row, linear, norm

FAMILY = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    heads=llama.heads("Phi", "classes", "token_classes"),
    head_rows=llama.SCORE,
    prefix="model.",
    layer="model.layers.{}.",
    sizes=llama.SIZES | {"norm_epsilon": "layer_norm_eps"},
    choices={"norm": "layer", "positions": "rope", "parallel": "one_norm", "output_bias": "bias"},
    defaults=llama.DEFAULTS
    | {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new"}
    | {"qk_layernorm": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0},
    quirks=(
        *(TIED, rope(partial=True)),
        one_of("feed", "hidden_act", gpt2.FEED),
        one_of("qk_norm", "qk_layernorm", {False: "none", True: "head"}),
        dropout(("resid_pdrop", "embd_pdrop"), "attention_dropout"),
    ),
    rows=(
        Row("model.embed_tokens.weight", ("embed/tokens",), "V,D"),
        *norm("model.final_layernorm", "final_norm"),
        Row("lm_head.weight", ("unembed/tokens",), "V,D"),
        Row("lm_head.bias", ("unembed/bias",), "V"),
    ),
    layer_rows=(
        *norm("input_layernorm", "attn_norm"),
        *(row for x in "qkv" for row in linear(f"self_attn.{x}_proj", f"attn/{x}", "NH,D")),
        *linear("self_attn.dense", "attn/o", "D,NH"),
        *norm("self_attn.q_layernorm", "attn/q_norm", "H"),
        *norm("self_attn.k_layernorm", "attn/k_norm", "H"),
        *linear("mlp.fc1", "feed/up", "F,D"),
        *linear("mlp.fc2", "feed/down", "D,F"),
    ),
    copies=llama.SHARED["copies"],
    ignored_tensors=llama.SHARED["ignored_tensors"],
)
