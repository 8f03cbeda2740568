"""Gemma (Google 2024): scaled embeddings, norm scales kept as offsets from 1, wide heads."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED
from jaxgen.models.families.ropes import ROPE

CHOICES = decoders.CHOICES | {"norm": "rms_offset", "embed.scale": "root", "feed": "geglu"}
DEFAULTS = decoders.DEFAULTS | {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "attention_bias": False,
    "use_bidirectional_attention": None,
}
TANH = "gelu_pytorch_tanh"

FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    heads=decoders.heads("Gemma", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    choices=CHOICES,
    defaults=DEFAULTS | {"hidden_act": TANH, "num_key_value_heads": 16},
    # "gelu" is how the first files call the tanh form that Gemma was trained with.
    only={
        "hidden_act": (TANH, "gelu"),
        "hidden_activation": (TANH, None),
        "use_bidirectional_attention": (None, False),
    },
    quirks=(TIED, ROPE, ATTENTION_BIAS),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
