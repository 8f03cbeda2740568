"""BERT (Devlin et al. 2018): an encoder, normalised after each sublayer."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.models.families.family import Family, Quirk, Row, linear, norm
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, one_of, token_classes

SIZES = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "norm_epsilon": "layer_norm_eps",
    "embed.types": "type_vocab_size",
    "init_std": "initializer_range",
}
CHOICES = {
    "topology": "encoder",
    "norm": "layer",
    "norm_at": "post",
    "positions": "learned",
    "embed.norm": "norm",
    "biases": "all",
}
DEFAULTS = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "tie_word_embeddings": True,
}
ONLY: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute", None),
}
IGNORED = frozenset("classifier_dropout gradient_checkpointing".split())
DROPOUT = Quirk(
    ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    lambda theirs: {"dropout": theirs["hidden_dropout_prob"]},
    lambda config: dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout
    ),
)


def _read_output(theirs) -> dict[str, Any]:
    words = theirs["architectures"][0] if theirs.get("architectures") else "MaskedLM"
    tied = "tied" if theirs["tie_word_embeddings"] else "untied"
    if not words.endswith(("MaskedLM", "PreTraining")):
        return {"output": "tied", "output_bias": "none"}
    return {"output": tied, "output_bias": "bias"}


def _write_output(config: ModelConfig) -> dict[str, Any]:
    return {"tie_word_embeddings": config.output == "tied"}


OUTPUT = Quirk(("tie_word_embeddings",), _read_output, _write_output)
OUTPUT_ROWS = (
    *linear("attention.output.dense", "attn/o", "D,NH"),
    *norm("attention.output.LayerNorm", "attn_norm"),
)
FEED_ROWS = (
    *linear("intermediate.dense", "feed/up", "F,D"),
    *linear("output.dense", "feed/down", "D,F"),
    *norm("output.LayerNorm", "feed_norm"),
)
LAYER_ROWS = (
    *linear("attention.self.query", "attn/q", "NH,D"),
    *linear("attention.self.key", "attn/k", "NH,D"),
    *linear("attention.self.value", "attn/v", "NH,D"),
    *OUTPUT_ROWS,
    *FEED_ROWS,
)


def rows(prefix: str) -> tuple[Row, ...]:
    """Return the rows of the embeddings."""
    at = f"{prefix}embeddings"
    return (
        Row(f"{at}.word_embeddings.weight", ("embed/tokens",), "V,D"),
        Row(f"{at}.position_embeddings.weight", ("embed/positions",), "S,D"),
        Row(f"{at}.token_type_embeddings.weight", ("embed/types",), "Y,D"),
        *norm(f"{at}.LayerNorm", "embed/norm"),
    )


def dense(name: str, last: str = "") -> tuple[Row, ...]:
    """Return the rows of a head's dense layer, and of the projection after it."""
    return _square(name, "head/dense") + (out(last) if last else ())


def out(name: str, **when: str) -> tuple[Row, ...]:
    """Return the rows of a head's last projection; when: see `Row`."""
    return tuple(row._replace(**when) for row in linear(name, "head/out", "C,D"))


def project(name: str) -> tuple[Row, ...]:
    """Return the rows of the projection of the sum of all embeddings."""
    return _square(name, "embed/project")


def _square(name: str, ours: str) -> tuple[Row, ...]:
    return (Row(f"{name}.weight", (ours,), "O,D"), Row(f"{name}.bias", (f"{ours}_bias",), "D"))


def heads(name: str, base: str = "pooled") -> dict[str, str]:
    """Return the heads of the classes of a family whose names begin with `name`."""
    return {
        f"{name}ForMaskedLM": "mlm",
        f"{name}ForSequenceClassification": "classes",
        f"{name}ForTokenClassification": "token_classes",
        f"{name}ForQuestionAnswering": "spans",
        f"{name}Model": base,
    }


def mlm(name: str) -> tuple[Row, ...]:
    """Return the rows of BERT's head of masked tokens."""
    return (
        *dense(f"{name}.transform.dense"),
        *norm(f"{name}.transform.LayerNorm", "head/norm"),
        Row(f"{name}.bias", ("unembed/bias",), "V"),
        Row(f"{name}.decoder.weight", ("unembed/tokens",), "V,D"),
    )


def activations(**ours: str) -> Quirk:
    """Return the quirk of heads whose activation no setting tells: ours, by the head."""

    def read(theirs) -> dict[str, Any]:
        named = theirs["architectures"][0] if theirs.get("architectures") else "MaskedLM"
        head = next((head for end, head in heads("").items() if named.endswith(end)), None)
        return {"head_layer.activation": ours[head]} if head in ours else {}

    return Quirk((), read, lambda config: {})


MLM = "cls.predictions"
FAMILY = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    heads=heads("Bert") | {"BertForPreTraining": "mlm"},
    prefix="bert.",
    layer="bert.encoder.layer.{}.",
    sizes=SIZES | {"context": "max_position_embeddings"},
    choices=CHOICES,
    defaults=DEFAULTS,
    only=ONLY,
    ignored=IGNORED,
    quirks=(OUTPUT, one_of("feed", "hidden_act", FEED), DROPOUT),
    rows=rows("bert."),
    layer_rows=LAYER_ROWS,
    head_rows={
        "mlm": mlm(MLM),
        "classes": dense("bert.pooler.dense", "classifier"),
        "pooled": dense("bert.pooler.dense"),
        "token_classes": token_classes("classifier"),
        "spans": SPANS,
    },
    copies={
        f"{MLM}.decoder.weight": "bert.embeddings.word_embeddings.weight",
        f"{MLM}.decoder.bias": f"{MLM}.bias",
    },
    # The sentence-pair head of pretraining, and its pooler, which no other head reads.
    ignored_tensors=("bert.embeddings.position_ids", "cls.seq_relationship.*", "bert.pooler.*"),
)
