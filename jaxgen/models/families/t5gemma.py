"""T5Gemma (Google 2025): an encoder-decoder of Gemma 2's layers, or the encoder alone."""

from __future__ import annotations

from jaxgen.models.families import decoders, gemma2, two_parts
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED, dropout, token_classes
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row, linear, norm


def _norms(name: str, ours: str) -> tuple[Row, ...]:
    before, after = f"pre_{name}_layernorm", f"post_{name}_layernorm"
    return (*norm(before, f"{ours}_norm"), *norm(after, f"{ours}_out_norm"))


LAYER = (*_norms("self_attn", "attn"), *_norms("feedforward", "feed"), *decoders.SUBLAYERS)
CROSS = tuple(
    row
    for x, layout in zip("qkvo", ("NH,D", "KH,D", "KH,D", "D,NH"), strict=True)
    for row in linear(f"cross_attn.{x}_proj", f"cross/{x}", layout)
)
DEFAULTS = {**gemma2.FAMILY.defaults, "dropout_rate": 0.0, "attention_dropout": 0.0}

FAMILY = Family(
    model_type="t5gemma",
    architecture="T5GemmaForConditionalGeneration",
    heads=decoders.heads("T5Gemma", "classes", "token_classes") | {"T5GemmaEncoderModel": "none"},
    towers={
        "T5GemmaEncoderModel": "encoder",
        "T5GemmaForSequenceClassification": None,
        "T5GemmaForTokenClassification": None,
    },
    head_rows=dict.fromkeys(("classes", "token_classes"), token_classes("score.out_proj")),
    **two_parts.FIELDS,
    prefix="model.",
    layer="model.decoder.layers.{}.",
    encoder="model.encoder.layers.{}.",
    sizes=gemma2.SHARED["sizes"] | two_parts.ENCODER_SIZES,
    choices=gemma2.CHOICES | {"topology": "encoder_decoder", "towers.tokens": "own"},
    defaults=DEFAULTS | {"is_encoder_decoder": True} | two_parts.of_encoder(DEFAULTS),
    only=gemma2.ONLY,
    ignored=frozenset({"classifier_dropout_rate", "cross_attention_hidden_size"}),
    quirks=(
        *(TIED, ROPE, ATTENTION_BIAS, two_parts.WINDOWS, two_parts.TOWERS, gemma2.QUERY),
        dropout(("dropout_rate",), "attention_dropout"),
        two_parts.LAST,
    ),
    rows=(
        Row("model.encoder.embed_tokens.weight", ("encoder/embed/tokens",), "V,D"),
        Row("model.decoder.embed_tokens.weight", ("embed/tokens",), "V,D"),
        *norm("model.encoder.norm", "encoder/final_norm"),
        *norm("model.decoder.norm", "final_norm"),
        Row("lm_head.out_proj.weight", ("unembed/tokens",), "V,D"),
    ),
    layer_rows=(*LAYER, *_norms("cross_attn", "cross"), *CROSS),
    encoder_rows=LAYER,
    copies={"lm_head.out_proj.weight": "model.decoder.embed_tokens.weight"},
)
