"""Image to text: what models of transformers' VisionEncoderDecoderModel with a ViT share.

Their config.json has a part for each tower, each of which is a family of its own there (Dosovitskiy
et al. 2020 for ViT). Once it is flat, the encoder's settings have names that begin with encoder_.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.known_settings import NEUTRAL
from jaxgen.models.families.quirks import FEED, one_of
from jaxgen.models.families.rows import Row, feed, linear, norm, queries

MODEL_TYPE, PARTS = "vision-encoder-decoder", ("encoder", "decoder")
BEGIN, READ = "encoder_", "cross_attention_hidden_size"
TIED = "tie_word_embeddings"  # of the whole it ties towers, of which one here has no table
LEFT_OUT = NEUTRAL | {TIED, READ}  # of an encoder
WHOLE = ("architectures", "model_type", "is_encoder_decoder")
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


def flat(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the decoder, and the encoder's as encoder_..."""
    if not {*PARTS} & theirs.keys():
        return dict(theirs)
    encoder, decoder = (theirs.get(part) for part in PARTS)
    if not isinstance(encoder, dict) or not isinstance(decoder, dict):
        raise CheckpointError("encoder and decoder are no settings of two towers")
    own = {f"{BEGIN}{key}": value for key, value in encoder.items() if key not in LEFT_OUT}
    return decoder | own | {k: v for k, v in theirs.items() if k not in (*PARTS, TIED)}


def width(key: str) -> Quirk:
    """Return the quirk of how wide are the vectors that a decoder reads; key: of its own width."""

    def read(theirs: Mapping[str, Any]) -> dict[str, Any]:
        seen, told = theirs[f"{BEGIN}hidden_size"], theirs.get(READ)
        if told is None and seen != theirs[key]:
            raise CheckpointError(
                f"encoder.hidden_size={seen!r:.20} but decoder.{key}={theirs[key]!r:.20}: the "
                f"projection between them (enc_to_dec_proj) is not known here"
            )
        if told not in (None, seen):
            raise CheckpointError(
                f"decoder.{READ}={told!r:.20} but encoder.hidden_size={seen!r:.20}"
            )
        return {}

    return Quirk((READ,), read, lambda config: {READ: config.memory_width})


def deep(decoder_type: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what makes the parts again; decoder_type: the model_type of the decoder."""

    def made_deep(theirs: Mapping[str, Any]) -> dict[str, Any]:
        encoder = {k.removeprefix(BEGIN): v for k, v in theirs.items() if k.startswith(BEGIN)}
        own = {k: v for k, v in theirs.items() if k not in WHOLE and not k.startswith(BEGIN)}
        whole = {key: theirs[key] for key in WHOLE} | {"model_type": MODEL_TYPE, TIED: False}
        encoder, decoder = encoder | {"model_type": "vit"}, own | {"model_type": decoder_type}
        return whole | {"encoder": encoder, "decoder": decoder}

    return made_deep
