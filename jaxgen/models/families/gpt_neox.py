"""GPT-NeoX and Pythia (Black et al. 2022): parallel sublayers, each behind a norm of its own."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, TIED, dropout, one_of
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row, feed, linear, norm

SIZES = {k: v for k, v in decoders.SIZES.items() if k not in ("kv_heads", "head_dim")}
QKV = tuple(f"attn/{x}" for x in "qkv")
MLP = feed("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
# What BLOOM and Falcon have as well.
QUIRKS = (TIED, dropout(("hidden_dropout",), "attention_dropout"))

FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    layer="gpt_neox.layers.{}.",
    sizes=SIZES | {"norm_epsilon": "layer_norm_eps"},
    choices={"norm": "layer", "positions": "rope"},
    defaults=decoders.DEFAULTS
    | {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 1e4}
    | {"use_parallel_residual": True, "attention_bias": True, "max_position_embeddings": 2048}
    | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    only={"is_decoder": (False, True)},
    ignored=frozenset({"classifier_dropout"}),
    quirks=(
        *(*QUIRKS, one_of("feed", "hidden_act", FEED)),
        rope(partial=True, theta="rotary_emb_base", share="rotary_pct"),
        one_of("parallel", "use_parallel_residual", {True: "two_norms", False: "none"}),
        one_of("biases", "attention_bias", {True: "all", False: "feed"}),
    ),
    rows=(
        Row("gpt_neox.embed_in.weight", ("embed/tokens",), "V,D"),
        *norm("gpt_neox.final_layer_norm", "final_norm"),
        Row("embed_out.weight", ("unembed/tokens",), "V,D"),
    ),
    layer_rows=(
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "feed_norm"),
        *linear("attention.query_key_value", QKV, "N*H,D"),
        *linear("attention.dense", "attn/o", "D,NH"),
        *MLP,
    ),
    heads=decoders.heads("GPTNeoX", *decoders.HEADS),
    head_rows=decoders.CLASSIFIER,
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    ignored_tensors=tuple(
        f"gpt_neox.layers.*.attention.{name}"
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
    ),
)
