"""What BART's kin have in common: names of settings, layers, and the heads they have.

Marian, mBART, Pegasus, M2M-100 and Blenderbot.
"""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig, OutputBias
from jaxgen.models.families.encoders import dense
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.quirks import FEED, SPANS, dropout, one_of
from jaxgen.models.families.rows import Row, feed, linear, norm, queries

SIZES = {
    "vocab_size": "vocab_size",
    "towers.encoder_layers": "encoder_layers",
    "towers.encoder_heads": "encoder_attention_heads",
    "towers.encoder_d_ff": "encoder_ffn_dim",
    "layers": "decoder_layers",
    "heads": "decoder_attention_heads",
    "d_ff": "decoder_ffn_dim",
    "d_model": "d_model",
    "init_std": "init_std",
    "context": "max_position_embeddings",
}
DEFAULTS: dict[str, Any] = {
    "init_std": 0.02,
    "activation_function": "gelu",
    "scale_embedding": False,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "num_labels": 3,
}
CHOICES = {
    "topology": "encoder_decoder",
    "norm": "layer",
    "norm_at": "post",
    "biases": "all",
    "norm_epsilon": 1e-5,
}
ONLY = {
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "normalize_before": (False,),
    "normalize_embedding": (True,),
    "add_final_layer_norm": (False,),
    "add_bias_logits": (False,),
    "static_position_embeddings": (False,),
}
# Of those that norm the inputs of sublayers, and the last hidden states.
PRE_NORM = ONLY | {"normalize_before": (True,), "add_final_layer_norm": (True,)}
IGNORED = frozenset(
    "activation_dropout classifier_dropout classif_dropout encoder_layerdrop decoder_layerdrop "
    "num_hidden_layers extra_pos_embeddings force_bos_token_to_be_generated "
    "output_past num_labels".split()
)


def output(bias: OutputBias) -> Quirk:
    """Return the quirk of the table and the bias of token logits, in a model that has them."""

    def read(theirs) -> dict[str, Any]:
        words = (theirs.get("architectures") or [""])[0]
        if words and not words.endswith(("ConditionalGeneration", "MTModel")):
            return {}
        tied = "tied" if theirs["tie_word_embeddings"] else "untied"
        return {"output": tied, "output_bias": bias}

    def write(config: ModelConfig) -> dict[str, Any]:
        return {"tie_word_embeddings": config.output == "tied"}

    return Quirk(("tie_word_embeddings",), read, write)


QUIRKS = (
    output("bias"),
    one_of("embed.scale", "scale_embedding", {False: "one", True: "root"}),
    one_of("feed", "activation_function", FEED),
    dropout(("dropout",), "attention_dropout"),
)


def _attention(name: str, ours: str) -> tuple[Row, ...]:
    return (
        *queries(f"{name}.{{}}_proj", ours),
        *linear(f"{name}.out_proj", f"{ours}/o", "D,NH"),
        *norm(f"{name}_layer_norm", f"{ours}_norm"),
    )


ENCODER_ROWS = (
    *_attention("self_attn", "attn"),
    *feed("fc1", "fc2"),
    *norm("final_layer_norm", "feed_norm"),
)
LAYER_ROWS = (*ENCODER_ROWS, *_attention("encoder_attn", "cross"))
ROWS = (
    Row("model.shared.weight", ("embed/tokens",), "V,D"),
    Row("lm_head.weight", ("unembed/tokens",), "V,D"),
    Row("final_logits_bias", ("unembed/bias",), "1,V"),
)
COPIES = (
    "lm_head.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
)
SHARED: dict[str, Any] = {
    "prefix": "model.",
    "layer": "model.decoder.layers.{}.",
    "encoder": "model.encoder.layers.{}.",
    "sizes": SIZES,
    "aliases": {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"},
    "only": ONLY,
    "ignored": IGNORED,
    "quirks": QUIRKS,
    "layer_rows": LAYER_ROWS,
    "encoder_rows": ENCODER_ROWS,
    "copies": dict.fromkeys(COPIES, "model.shared.weight"),
}

POSITIONS = (
    Row("model.encoder.embed_positions.weight", ("encoder/embed/positions",), "S,D"),
    Row("model.decoder.embed_positions.weight", ("embed/positions",), "S,D"),
)
EMBED_NORMS = (
    *norm("model.encoder.layernorm_embedding", "encoder/embed/norm"),
    *norm("model.decoder.layernorm_embedding", "embed/norm"),
)
FINAL_NORMS = (
    *norm("model.encoder.layer_norm", "encoder/final_norm"),
    *norm("model.decoder.layer_norm", "final_norm"),
)


def classes(name: str, *, heads: bool = False) -> dict[str, Any]:
    """Return the classes of a family whose names begin with `name`, as fields of a Family."""
    fields: dict[str, Any] = {
        "architecture": f"{name}ForConditionalGeneration",
        "heads": {f"{name}Model": "none"},
    }
    if not heads:
        return fields
    fields["heads"] |= {
        f"{name}ForSequenceClassification": "classes",
        f"{name}ForQuestionAnswering": "spans",
    }
    rows = dense("classification_head.dense", "classification_head.out_proj")
    return {**fields, "labels": 3, "head_rows": {"classes": rows, "spans": SPANS}}
