"""What ModernBERT and the decoder of its layers have in common."""

from __future__ import annotations

from functools import partial

from jaxgen.config import Part
from jaxgen.models.families.layer_kinds import every_nth, two_ropes
from jaxgen.models.families.quirks import (
    FEED,
    GATES,
    TIED,
    biases,
    dropout,
    fixed,
    of_heads,
    one_of,
)
from jaxgen.models.families.rows import linear, norm

EVERY = "global_attn_every_n_layers"
KINDS = partial(every_nth, key=EVERY, ahead=0)
WINDOW = "local_attention"  # on both sides together, without the token itself
ROPES = two_ropes(KINDS, key="local_rope_theta", theta=10000.0, other="global_rope_theta")
PARTS: dict[str, tuple[Part, ...]] = {
    "attention_bias": ("qkv", "o"),
    "mlp_bias": ("feed",),
    "norm_bias": ("norm",),
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
    *(ROPES, biases(PARTS), *HEADS),
    dropout(("embedding_dropout", "mlp_dropout"), "attention_dropout"),
)
LAYER_ROWS = (
    *norm("attn_norm", "attn_norm"),
    *linear("attn.Wo", "attn/o", "D,NH"),
    *norm("mlp_norm", "feed_norm"),
    *linear("mlp.Wi", ("feed/gate", "feed/up"), "*F,D"),
    *linear("mlp.Wo", "feed/down", "D,F"),
)
