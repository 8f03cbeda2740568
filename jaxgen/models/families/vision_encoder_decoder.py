"""Image to text: what models of transformers' VisionEncoderDecoderModel with a ViT share.

Their config.json has a part for each tower, each of which is a family of its own there (Dosovitskiy
et al. 2020 for ViT). Once it is flat, the encoder's settings have names that begin with encoder_.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.models.families.known_settings import NEUTRAL
from jaxgen.models.families.quirks import FEED, one_of
from jaxgen.models.families.rows import Row, feed, linear, norm, queries

MODEL_TYPE, PARTS = "vision-encoder-decoder", ("encoder", "decoder")
BEGIN = "encoder_"
WHOLE = {"architectures", "model_type", "is_encoder_decoder"}
SIZES = {
    "towers.encoder_layers": "encoder_num_hidden_layers",
    "towers.encoder_d_model": "encoder_hidden_size",
    "towers.encoder_heads": "encoder_num_attention_heads",
    "towers.encoder_d_ff": "encoder_intermediate_size",
    "towers.encoder_norm_epsilon": "encoder_layer_norm_eps",
    "stem.size": "encoder_image_size",
    "stem.patch": "encoder_patch_size",
    "stem.channels": "encoder_num_channels",
}
CHOICES = {
    "topology": "encoder_decoder",
    "stem.kind": "patches",
    "stem.first": "learned",
    "towers.encoder_norm_at": "pre",
}
DEFAULTS: dict[str, Any] = {
    "encoder_num_hidden_layers": 12,
    "encoder_hidden_size": 768,
    "encoder_num_attention_heads": 12,
    "encoder_intermediate_size": 3072,
    "encoder_layer_norm_eps": 1e-12,
    "encoder_image_size": 224,
    "encoder_patch_size": 16,
    "encoder_num_channels": 3,
    "encoder_hidden_act": "gelu",
    "encoder_qkv_bias": True,
    "is_encoder_decoder": True,
    "is_decoder": True,
    "add_cross_attention": True,
}
ONLY = {"is_encoder_decoder": (True,), "is_decoder": (True,), "add_cross_attention": (True,)}
# A pooler that no decoder reads, what training draws, and masked images.
IGNORED = frozenset(
    "encoder_pooler_act encoder_pooler_output_size encoder_encoder_stride "
    "encoder_hidden_dropout_prob encoder_attention_probs_dropout_prob".split()
)
QUIRKS = (
    one_of("towers.encoder_feed", "encoder_hidden_act", FEED),
    one_of("towers.encoder_biases", "encoder_qkv_bias", {True: "all", False: "no_qkv"}),
)
ROWS = (
    Row("encoder.embeddings.cls_token", ("encoder/stem/first",), "1,S,D"),
    Row("encoder.embeddings.position_embeddings", ("encoder/stem/positions",), "1,S,D"),
    *linear("encoder.embeddings.patch_embeddings.projection", "encoder/stem/patches", "D,M,W,X"),
    *norm("encoder.layernorm", "encoder/final_norm"),
)
ENCODER_ROWS = (
    *norm("layernorm_before", "attn_norm"),
    *queries("attention.attention.{}", names=("query", "key", "value")),
    *linear("attention.output.dense", "attn/o", "D,NH"),
    *norm("layernorm_after", "feed_norm"),
    *feed("intermediate.dense", "output.dense"),
)


def flat(key: str, default: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what makes one mapping of the parts; key, default: of the decoder's width."""

    def made_flat(theirs: Mapping[str, Any]) -> dict[str, Any]:
        if not {*PARTS} & theirs.keys():
            return dict(theirs)
        encoder, decoder = (theirs.get(part) for part in PARTS)
        if not isinstance(encoder, dict) or not isinstance(decoder, dict):
            raise CheckpointError("encoder and decoder are no settings of two towers")
        seen, own = encoder.get("hidden_size", 768), decoder.get(key, default)
        read = decoder.get("cross_attention_hidden_size")
        if read is None and seen != own:
            raise CheckpointError(
                f"encoder.hidden_size={seen!r:.20} but decoder.{key}={own!r:.20}: the projection "
                f"between them (enc_to_dec_proj) is not known here"
            )
        if read is not None and read != seen:
            raise CheckpointError(
                f"decoder.cross_attention_hidden_size={read!r:.20} but "
                f"encoder.hidden_size={seen!r:.20}"
            )
        left_out = {*PARTS, "tie_word_embeddings"}  # which says that the towers share no table
        parts = {k: v for k, v in decoder.items() if k not in ("cross_attention_hidden_size",)}
        parts |= {f"{BEGIN}{k}": v for k, v in encoder.items() if k not in NEUTRAL}
        return parts | {k: v for k, v in theirs.items() if k not in left_out}

    return made_flat


def deep(decoder_type: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what makes the parts again; decoder_type: the model_type of the decoder."""

    def made_deep(theirs: Mapping[str, Any]) -> dict[str, Any]:
        encoder = {k.removeprefix(BEGIN): v for k, v in theirs.items() if k.startswith(BEGIN)}
        own = {k: v for k, v in theirs.items() if k not in WHOLE and not k.startswith(BEGIN)}
        width = encoder["hidden_size"]
        decoder = own | {"model_type": decoder_type, "cross_attention_hidden_size": width}
        whole = {key: theirs[key] for key in WHOLE if key in theirs} | {"model_type": MODEL_TYPE}
        return {
            **whole,
            "tie_word_embeddings": False,
            "encoder": encoder | {"model_type": "vit"},
            "decoder": decoder,
        }

    return made_deep
