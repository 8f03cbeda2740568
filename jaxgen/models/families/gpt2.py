"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import BY_LAYER, FEED, TIED, dropout, one_of
from jaxgen.models.families.rows import Row, linear, norm

FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    layer="transformer.h.{}.",
    sizes={
        "vocab_size": "vocab_size",
        "context": "n_positions",
        "layers": "n_layer",
        "d_model": "n_embd",
        "heads": "n_head",
        "d_ff": "n_inner",
        "norm_epsilon": "layer_norm_epsilon",
        "init_std": "initializer_range",
    },
    choices={"norm": "layer", "positions": "learned", "biases": "all"},
    defaults={"n_inner": None, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02}
    | {"activation_function": "gelu_new", "resid_pdrop": 0.1, "attn_pdrop": 0.1}
    | {"tie_word_embeddings": True, "scale_attn_by_inverse_layer_idx": False},
    aliases={"max_position_embeddings": "n_positions", "num_hidden_layers": "n_layer"}
    | {"hidden_size": "n_embd", "num_attention_heads": "n_head"},
    only={"scale_attn_weights": (True,), "add_cross_attention": (False,)},
    ignored=frozenset("n_ctx reorder_and_upcast_attn summary_activation summary_type".split())
    | frozenset("summary_first_dropout summary_proj_to_labels summary_use_proj".split()),
    quirks=(
        *(TIED, one_of("feed", "activation_function", FEED), BY_LAYER),
        dropout(("resid_pdrop", "embd_pdrop"), "attn_pdrop"),
    ),
    rows=(
        Row("transformer.wte.weight", ("embed/tokens",), "V,D"),
        Row("transformer.wpe.weight", ("embed/positions",), "S,D"),
        *norm("transformer.ln_f", "final_norm"),
        Row("lm_head.weight", ("unembed/tokens",), "V,D"),
    ),
    # Its Conv1D keeps [in, out], not the [out, in] of a Linear.
    layer_rows=(
        *norm("ln_1", "attn_norm"),
        *linear("attn.c_attn", ("attn/q", "attn/k", "attn/v"), "D,*NH", outputs=1),
        *linear("attn.c_proj", "attn/o", "NH,D", outputs=1),
        *norm("ln_2", "feed_norm"),
        *linear("mlp.c_fc", "feed/up", "D,F", outputs=1),
        *linear("mlp.c_proj", "feed/down", "F,D", outputs=1),
    ),
    heads=decoders.heads("GPT2", *decoders.HEADS),
    head_rows=decoders.CLASSIFIER,
    copies={"lm_head.weight": "transformer.wte.weight"},
    # Causal masks, which old files keep as if they were weights.
    ignored_tensors=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
)
