"""ModernBERT (Warner et al. 2024): an encoder of windows and of the whole text, with two ropes."""

from __future__ import annotations

from functools import partial

from jaxgen.models.families import encoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.layer_kinds import every_nth, layer_types, two_ropes
from jaxgen.models.families.quirks import (
    GATES,
    TIED,
    dropout,
    fixed,
    of_heads,
    one_of,
    together,
    token_classes,
)
from jaxgen.models.families.rows import Row, linear, norm

EVERY = "global_attn_every_n_layers"
KINDS = partial(every_nth, key=EVERY, ahead=0)
WINDOW = "local_attention"  # on both sides together, without the token itself
LAYERS = layer_types(KINDS, (EVERY,), half=(WINDOW, 1))
ROPES = two_ropes(KINDS, key="local_rope_theta", theta=10000.0, other="global_rope_theta")
PARTS = ("attention_bias", "mlp_bias", "norm_bias")
TOLD = {
    (False, False, False): "none",
    (False, False, True): "norms",
    (True, False, True): "attention",
    (False, True, True): "feed",
    (True, True, True): "all",
}
HEADS = (
    *of_heads(
        ("mlm", "lm", "classes", "token_classes", "spans"),
        fixed(head_layer__kind="norm"),
        one_of("head_layer.activation", "classifier_activation", {"gelu": "gelu"} | FEED),
        one_of("head_layer.bias", "classifier_bias", {False: "none", True: "bias"}),
    ),
    *of_heads(
        ("classes",),
        one_of("head_layer.pool", "classifier_pooling", {"cls": "first", "mean": "mean"}),
    ),
    *of_heads(
        ("mlm", "lm"), TIED, one_of("output_bias", "decoder_bias", {True: "bias", False: "none"})
    ),
)
QUIRKS = (
    one_of("feed", "hidden_activation", GATES),
    *(ROPES, together("biases", PARTS, TOLD), *HEADS),
    dropout(("embedding_dropout", "mlp_dropout"), "attention_dropout"),
)
LAYER_ROWS = (
    *norm("attn_norm", "attn_norm"),
    *linear("attn.Wo", "attn/o", "D,NH"),
    *norm("mlp_norm", "feed_norm"),
    *linear("mlp.Wi", ("feed/gate", "feed/up"), "*F,D"),
    *linear("mlp.Wo", "feed/down", "D,F"),
)
HEAD = ("head.dense", "head.norm")
CLASSES = (*encoders.normed(*HEAD), *token_classes("classifier"))

FAMILY = Family(
    model_type="modernbert",
    prefix="model.",
    layer="model.layers.{}.",
    sizes={ours: key for ours, key in encoders.SIZES.items() if ours != "embed.types"}
    | {"norm_epsilon": "norm_eps", "context": "max_position_embeddings"},
    choices={"topology": "encoder", "norm": "layer", "positions": "rope", "embed.norm": "first"},
    defaults=dict.fromkeys((*PARTS, "classifier_bias"), False)
    | dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), 0.0)
    | {"hidden_activation": "gelu", "classifier_activation": "gelu", "classifier_pooling": "cls"}
    | {"initializer_range": 0.02, "norm_eps": 1e-5, "decoder_bias": True, EVERY: 3}
    | {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, WINDOW: 128}
    | {"max_position_embeddings": 8192, "tie_word_embeddings": True},
    only={"rope_scaling": (None,), "position_embedding_type": ("absolute", "sans_pos", None)},
    ignored=frozenset("classifier_dropout initializer_cutoff_factor layer_norm_eps".split())
    | frozenset("deterministic_flash_attn reference_compile repad_logits_with_grad".split())
    | frozenset({"sparse_prediction", "sparse_pred_ignore_index"}),
    quirks=(LAYERS, *QUIRKS),
    rows=(
        Row("model.embeddings.tok_embeddings.weight", ("embed/tokens",), "V,D"),
        *norm("model.embeddings.norm", "embed/norm"),
        *norm("model.final_norm", "final_norm"),
    ),
    layer_rows=(*linear("attn.Wqkv", ("attn/q", "attn/k", "attn/v"), "*NH,D"), *LAYER_ROWS),
    head_rows={
        "mlm": encoders.mlm(*HEAD, "decoder"),
        **dict.fromkeys(("classes", "token_classes", "spans"), CLASSES),
    },
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    **encoders.classes("ModernBert"),
)
