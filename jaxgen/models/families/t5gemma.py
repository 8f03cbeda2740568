"""T5Gemma (Google 2025): an encoder-decoder of Gemma 2's layers, whose towers have one shape."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import gemma2, llama, two_parts
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.layer_kinds import MOST_WINDOWS
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED, dropout
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row, linear, norm


def _read_windows(theirs) -> dict[str, Any]:
    found = MOST_WINDOWS.read(theirs)
    window = found["window"]
    # An encoder's takes in the token that is so many positions away.
    return found if window is None else found | {"towers.encoder_window": window + 1}


def _norms(name: str, ours: str) -> tuple[Row, ...]:
    before, after = f"pre_{name}_layernorm", f"post_{name}_layernorm"
    return (*norm(before, f"{ours}_norm"), *norm(after, f"{ours}_out_norm"))


WINDOWS = Quirk(MOST_WINDOWS.keys, _read_windows, MOST_WINDOWS.write)
LAYER = (*_norms("self_attn", "attn"), *_norms("feedforward", "feed"), *llama.SUBLAYERS)
CROSS = tuple(
    row
    for x, layout in zip("qkvo", ("NH,D", "KH,D", "KH,D", "D,NH"), strict=True)
    for row in linear(f"cross_attn.{x}_proj", f"cross/{x}", layout)
)

FAMILY = Family(
    model_type="t5gemma",
    architecture="T5GemmaForConditionalGeneration",
    heads={"T5GemmaModel": "none"},
    **two_parts.FIELDS,
    prefix="model.",
    layer="model.decoder.layers.{}.",
    encoder="model.encoder.layers.{}.",
    sizes=gemma2.SHARED["sizes"] | {"encoder_layers": "encoder_layers"},
    choices=gemma2.CHOICES | {"topology": "encoder_decoder", "towers.tokens": "own"},
    defaults={**gemma2.FAMILY.defaults, "dropout_rate": 0.0, "attention_dropout": 0.0},
    only=gemma2.ONLY | {"is_encoder_decoder": (True,)},
    ignored=frozenset({"classifier_dropout_rate", "cross_attention_hidden_size"}),
    quirks=(
        *(TIED, ROPE, ATTENTION_BIAS, WINDOWS, gemma2.QUERY),
        dropout(("dropout_rate",), "attention_dropout"),
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
