"""OPT (Zhang et al. 2022): GPT with ReLU; positions count from 2.

That of 350m has norms behind its sublayers, and tokens of half its width.
"""

from __future__ import annotations

from jaxgen.models.families import decoders, gpt_neox
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, TIED, dropout, of_heads, one_of, same, table_width
from jaxgen.models.families.rows import Row, feed, linear, norm, queries

WIDTH = "word_embed_proj_dim"

FAMILY = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    prefix="model.",
    layer="model.decoder.layers.{}.",
    sizes={name: key for name, key in gpt_neox.SIZES.items() if name != "norm_epsilon"}
    | {"d_ff": "ffn_dim", "init_std": "init_std"},
    choices={"norm": "layer", "positions": "learned", "embed.offset": 2},
    defaults={"init_std": 0.02, "activation_function": "relu", "tie_word_embeddings": True}
    | {"dropout": 0.1, "attention_dropout": 0.0, "do_layer_norm_before": True, "enable_bias": True},
    only={"layer_norm_elementwise_affine": (True,), "_remove_final_layer_norm": (False,)},
    ignored=frozenset({"activation_dropout", "layerdrop"}),
    inherited={WIDTH: "hidden_size"},
    quirks=(
        *of_heads(("lm",), table_width(WIDTH, "tokens")),
        *of_heads(("classes", "spans", "none"), same(("hidden_size", WIDTH), "d_model")),
        *(TIED, one_of("feed", "activation_function", FEED)),
        one_of("norm_at", "do_layer_norm_before", {True: "pre", False: "post"}),
        one_of("biases", "enable_bias", {True: "all", False: "norms"}),
        dropout(("dropout",), "attention_dropout"),
    ),
    rows=(
        Row("model.decoder.embed_tokens.weight", ("embed/tokens",), "V,D"),
        Row("model.decoder.embed_positions.weight", ("embed/positions",), "S,D"),
        *norm("model.decoder.final_layer_norm", "final_norm"),
        Row("model.decoder.project_in.weight", ("embed/project",), "O,D"),
        Row("model.decoder.project_out.weight", ("unembed/project",), "O,D"),
        Row("lm_head.weight", ("unembed/tokens",), "V,D"),
    ),
    layer_rows=(
        *norm("self_attn_layer_norm", "attn_norm"),
        *queries("self_attn.{}_proj"),
        *linear("self_attn.out_proj", "attn/o", "D,NH"),
        *norm("final_layer_norm", "feed_norm"),
        *feed("fc1", "fc2"),
    ),
    heads=decoders.heads("OPT", "classes", "spans"),
    head_rows=decoders.SCORE,
    copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
)
