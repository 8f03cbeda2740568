"""TrOCR (Li et al. 2021): text in images; a ViT with a decoder like BART's."""

from __future__ import annotations

from jaxgen.models.families import bart_kin
from jaxgen.models.families import vision_encoder_decoder as vision
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, TIED, dropout, one_of
from jaxgen.models.families.rows import Row, norm

DECODER = "decoder.model.decoder"
SIZES = {ours: key for ours, key in bart_kin.SIZES.items() if not ours.startswith("towers.")}

FAMILY = Family(
    model_type="vit-trocr",
    architecture="VisionEncoderDecoderModel",
    prefix="",
    layer=f"{DECODER}.layers.{{}}.",
    encoder="encoder.encoder.layer.{}.",
    flat=vision.flat,
    deep=vision.deep("trocr"),
    sizes=SIZES | vision.SIZES,
    choices=bart_kin.CHOICES | vision.CHOICES | {"positions": "learned", "embed.offset": 2},
    defaults=bart_kin.DEFAULTS
    | vision.DEFAULTS
    | {"vocab_size": 50265, "d_model": 1024, "decoder_layers": 12, "decoder_attention_heads": 16}
    | {"decoder_ffn_dim": 4096, "max_position_embeddings": 512, "layernorm_embedding": True}
    | {"use_learned_position_embeddings": True},
    only=vision.ONLY | {"use_learned_position_embeddings": (True,)},
    ignored=vision.IGNORED | {"activation_dropout", "decoder_layerdrop", "classifier_dropout"},
    quirks=(
        *(*vision.QUIRKS, vision.width("d_model"), TIED),
        one_of("feed", "activation_function", FEED),
        one_of("embed.scale", "scale_embedding", {False: "one", True: "root"}),
        one_of("embed.norm", "layernorm_embedding", {True: "norm", False: "none"}),
        dropout(("dropout",), "attention_dropout"),
    ),
    rows=(
        Row(f"{DECODER}.embed_tokens.weight", ("embed/tokens",), "V,D"),
        Row(f"{DECODER}.embed_positions.weight", ("embed/positions",), "S,D"),
        Row("decoder.output_projection.weight", ("unembed/tokens",), "V,D"),
        *norm(f"{DECODER}.layernorm_embedding", "embed/norm"),
        *vision.ROWS,
    ),
    layer_rows=bart_kin.LAYER_ROWS,
    encoder_rows=vision.ENCODER_ROWS,
    copies={"decoder.output_projection.weight": f"{DECODER}.embed_tokens.weight"},
    ignored_tensors=("encoder.pooler.*",),
)
