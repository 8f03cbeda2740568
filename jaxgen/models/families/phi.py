"""Phi 1, 1.5 and 2 (Gunasekar et al. 2023): attention and feed-forward side by side."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, TIED, dropout, one_of
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row, feed, linear, norm, queries

FAMILY = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    heads=decoders.heads("Phi", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    prefix="model.",
    layer="model.layers.{}.",
    sizes=decoders.SIZES | {"norm_epsilon": "layer_norm_eps"},
    choices={"norm": "layer", "positions": "rope", "parallel": "one_norm", "output_bias": "bias"},
    defaults=decoders.DEFAULTS
    | {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "gelu_new"}
    | {"qk_layernorm": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0},
    quirks=(
        *(TIED, rope(partial=True)),
        one_of("feed", "hidden_act", FEED),
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
        *queries("self_attn.{}_proj"),
        *linear("self_attn.dense", "attn/o", "D,NH"),
        *norm("self_attn.q_layernorm", "attn/q_norm", "H"),
        *norm("self_attn.k_layernorm", "attn/k_norm", "H"),
        *feed("mlp.fc1", "mlp.fc2"),
    ),
    copies=decoders.SHARED["copies"],
    ignored_tensors=decoders.SHARED["ignored_tensors"],
)
