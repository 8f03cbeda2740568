"""ViT with GPT-2: captions of images, as vit-gpt2-image-captioning has them."""

from __future__ import annotations

from jaxgen.models.families import gpt2
from jaxgen.models.families import vision_encoder_decoder as vision
from jaxgen.models.families.family import Family
from jaxgen.models.families.rows import linear, norm

GPT2 = gpt2.FAMILY
FAMILY = Family(
    model_type="vit-gpt2",
    architecture="VisionEncoderDecoderModel",
    prefix="",
    layer="decoder.transformer.h.{}.",
    encoder="encoder.encoder.layer.{}.",
    flat=vision.flat,
    deep=vision.deep("gpt2"),
    sizes={**GPT2.sizes, **vision.SIZES},
    choices={**GPT2.choices, **vision.CHOICES},
    defaults={**GPT2.defaults, **vision.DEFAULTS},
    aliases=GPT2.aliases,
    only={**GPT2.only, **vision.ONLY},
    ignored=GPT2.ignored | vision.IGNORED,
    quirks=(*GPT2.quirks, *vision.QUIRKS, vision.width("n_embd")),
    rows=(
        *(row._replace(theirs=f"decoder.{row.theirs}") for row in GPT2.rows),
        *vision.ROWS,
    ),
    layer_rows=(
        *GPT2.layer_rows,
        *norm("ln_cross_attn", "cross_norm"),
        *linear("crossattention.q_attn", "cross/q", "D,NH", outputs=1),
        *linear("crossattention.c_attn", ("cross/k", "cross/v"), "D,*KH", outputs=1),
        *linear("crossattention.c_proj", "cross/o", "NH,D", outputs=1),
    ),
    encoder_rows=vision.ENCODER_ROWS,
    copies={"decoder.lm_head.weight": "decoder.transformer.wte.weight"},
    ignored_tensors=(
        "encoder.pooler.*",
        *(f"decoder.{name}" for name in GPT2.ignored_tensors),
        "decoder.transformer.h.*.crossattention.bias",
        "decoder.transformer.h.*.crossattention.masked_bias",
    ),
)
