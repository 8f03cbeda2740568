"""What T5's kin have in common: names of settings, layers, and the heads they have."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families.encoders import dense
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.quirks import SPANS, one_of, token_classes
from jaxgen.models.families.rows import Row

CONTEXT = 512  # what it was trained with; its relative positions set no limit


def read_output(theirs) -> dict[str, Any]:
    """Return how the decoder's states become logits, in a model that has any."""
    tied = theirs["tie_word_embeddings"]
    words = (theirs.get("architectures") or [""])[0]
    if words and not words.endswith(("ConditionalGeneration", "LMHeadModel")):
        return {}
    # transformers 5 saves the scale by itself, 4 lets it follow from the tie.
    scaled = theirs.get("scale_decoder_outputs")
    scale = "root" if (tied if scaled is None else scaled) else "one"
    return {"output": "tied" if tied else "untied", "output_scale": scale}


def _write_output(config: ModelConfig) -> dict[str, Any]:
    theirs: dict[str, Any] = {"tie_word_embeddings": config.output == "tied"}
    if config.head == "lm" and theirs["tie_word_embeddings"] != (config.output_scale == "root"):
        theirs["scale_decoder_outputs"] = config.output_scale == "root"
    return theirs


OUTPUT = Quirk(("tie_word_embeddings", "scale_decoder_outputs"), read_output, _write_output)
FEED = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
FEEDS = one_of("feed", "feed_forward_proj", FEED)


def _read_feed(theirs) -> dict[str, Any]:
    fields = FEEDS.read(theirs)
    word = theirs["feed_forward_proj"]
    last = "gelu_new" if word == "gated-gelu" else word.rpartition("-")[2]
    implied = {"is_gated_act": word.startswith("gated-"), "dense_act_fn": last}
    for key, value in implied.items():
        if theirs.get(key, value) not in (value, None):
            raise CheckpointError(
                f"{key}={theirs[key]!r:.40} but feed_forward_proj={word}, which means {value!r}"
            )
    return fields


def _attention(name: str, ours: str) -> tuple[Row, ...]:
    return (
        *(Row(f"{name}.{x}.weight", (f"{ours}/{x}",), "NH,D") for x in "qkv"),
        Row(f"{name}.o.weight", (f"{ours}/o",), "D,NH"),
    )


def feed_rows(at: str) -> tuple[Row, ...]:
    """Return the rows of a feed-forward sublayer of this name."""
    return (
        Row(f"{at}.DenseReluDense.wi.weight", ("feed/up",), "F,D", unless="feed/gate"),
        Row(f"{at}.DenseReluDense.wi_0.weight", ("feed/gate",), "F,D"),
        Row(f"{at}.DenseReluDense.wi_1.weight", ("feed/up",), "F,D", beside="feed/gate"),
        Row(f"{at}.DenseReluDense.wo.weight", ("feed/down",), "D,F"),
        Row(f"{at}.layer_norm.weight", ("feed_norm/scale",), "D"),
    )


SELF = (
    *_attention("layer.0.SelfAttention", "attn"),
    Row("layer.0.layer_norm.weight", ("attn_norm/scale",), "D"),
)
CROSS = (
    *_attention("layer.1.EncDecAttention", "cross"),
    Row("layer.1.layer_norm.weight", ("cross_norm/scale",), "D"),
)
TABLE = "layer.0.SelfAttention.relative_attention_bias.weight"
CROSS_TABLE = "block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

# All that the families made of T5 share, whatever their classes are called.
SHARED: dict[str, Any] = {
    # Hidden states pass the range of float16, which transformers leaves for the feed-forward.
    "compute": {"float16": "float32"},
    "prefix": "",
    "moved": {"classes": "transformer.", "token_classes": "transformer."},
    "layer": "decoder.block.{}.",
    "encoder": "encoder.block.{}.",
    "sizes": {
        "vocab_size": "vocab_size",
        "towers.encoder_layers": "num_layers",
        "layers": "num_decoder_layers",
        "d_model": "d_model",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "d_ff": "d_ff",
        "norm_epsilon": "layer_norm_epsilon",
        "relative.buckets": "relative_attention_num_buckets",
        "relative.distance": "relative_attention_max_distance",
        "context": "n_positions",
        "dropout": "dropout_rate",
    },
    "aliases": {
        "num_hidden_layers": "num_layers",
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "head_dim": "d_kv",
    },
    "inherited": {"num_decoder_layers": "num_layers"},
    "only": {"is_encoder_decoder": (True, False), "is_decoder": (False,)},
    "ignored": frozenset("initializer_factor output_past classifier_dropout".split()),
    "head_rows": {
        "classes": dense("classification_head.dense", "classification_head.out_proj"),
        "token_classes": token_classes("classifier"),
        "spans": SPANS,
    },
    "copies": {
        "lm_head.weight": "shared.weight",
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    # A table that early files keep for cross-attention, which never reads it.
    "ignored_tensors": (f"decoder.{CROSS_TABLE}",),
}
CHOICES = {
    "topology": "encoder_decoder",
    "norm": "rms",
    "positions": "relative",
    "biases": "none",
    "scores.query_scalar": 1.0,
}
DEFAULTS = {
    "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "dropout_rate": 0.1,
    "n_positions": CONTEXT,
    "tie_word_embeddings": True,
}
QUIRKS = (Quirk((*FEEDS.keys, "is_gated_act", "dense_act_fn"), _read_feed, FEEDS.write),)
ROWS = (
    Row("shared.weight", ("embed/tokens",), "V,D"),
    Row("encoder.final_layer_norm.weight", ("encoder/final_norm/scale",), "D"),
    Row("decoder.final_layer_norm.weight", ("final_norm/scale",), "D"),
    Row("lm_head.weight", ("unembed/tokens",), "V,D"),
)


def classes(name: str) -> dict[str, Any]:
    """Return the classes of a family whose names begin with `name`, as fields of a Family."""
    return {
        "architecture": f"{name}ForConditionalGeneration",
        "heads": {
            f"{name}ForSequenceClassification": "classes",
            f"{name}ForTokenClassification": "token_classes",
            f"{name}ForQuestionAnswering": "spans",
            f"{name}Model": "none",
            f"{name}EncoderModel": "none",
            f"{name}WithLMHeadModel": "lm",
        },
        "towers": {f"{name}EncoderModel": "encoder", f"{name}ForTokenClassification": "encoder"},
    }
