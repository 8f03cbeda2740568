"""BERT (Devlin et al. 2018): an encoder, normalised after each sublayer."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, one_of, token_classes

SIZES = {
    "vocab_size": "vocab_size",
    "layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "norm_epsilon": "layer_norm_eps",
    "token_types": "type_vocab_size",
    "init_std": "initializer_range",
}
CHOICES = {
    "topology": "encoder",
    "norm": "layer",
    "norm_at": "post",
    "positions": "learned",
    "embed_norm": "norm",
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
_PROJECTIONS = (
    ("attention.self.query", "attn/q", "NH,D"),
    ("attention.self.key", "attn/k", "NH,D"),
    ("attention.self.value", "attn/v", "NH,D"),
    ("attention.output.dense", "attn/o", "D,NH"),
    ("intermediate.dense", "feed/up", "F,D"),
    ("output.dense", "feed/down", "D,F"),
)
LAYER_ROWS = (
    *(Row(f"{name}.weight", (ours,), layout) for name, ours, layout in _PROJECTIONS),
    *(
        Row(f"{name}.bias", (f"{ours}_bias",), layout.split(",")[0])
        for name, ours, layout in _PROJECTIONS
    ),
    Row("attention.output.LayerNorm.weight", ("attn_norm/scale",), "D"),
    Row("attention.output.LayerNorm.bias", ("attn_norm/bias",), "D"),
    Row("output.LayerNorm.weight", ("feed_norm/scale",), "D"),
    Row("output.LayerNorm.bias", ("feed_norm/bias",), "D"),
)


def rows(prefix: str) -> tuple[Row, ...]:
    """Return the rows of the embeddings."""
    at = f"{prefix}embeddings"
    return (
        Row(f"{at}.word_embeddings.weight", ("embed/tokens",), "V,D"),
        Row(f"{at}.position_embeddings.weight", ("embed/positions",), "S,D"),
        Row(f"{at}.token_type_embeddings.weight", ("embed/types",), "Y,D"),
        Row(f"{at}.LayerNorm.weight", ("embed/norm/scale",), "D"),
        Row(f"{at}.LayerNorm.bias", ("embed/norm/bias",), "D"),
    )


def dense(name: str, out: str = "") -> tuple[Row, ...]:
    """Return the rows of a head's dense layer, and of the projection after it."""
    found = (
        Row(f"{name}.weight", ("head/dense",), "O,D"),
        Row(f"{name}.bias", ("head/dense_bias",), "D"),
    )
    ends = (
        Row(f"{out}.weight", ("head/out",), "C,D"),
        Row(f"{out}.bias", ("head/out_bias",), "C"),
    )
    return found + ends if out else found


MLM = "cls.predictions"
FAMILY = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    heads={
        "BertForMaskedLM": "mlm",
        "BertForSequenceClassification": "classes",
        "BertForTokenClassification": "token_classes",
        "BertForQuestionAnswering": "spans",
        "BertForPreTraining": "mlm",
        "BertModel": "pooled",
    },
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
        "mlm": (
            *dense(f"{MLM}.transform.dense"),
            Row(f"{MLM}.transform.LayerNorm.weight", ("head/norm/scale",), "D"),
            Row(f"{MLM}.transform.LayerNorm.bias", ("head/norm/bias",), "D"),
            Row(f"{MLM}.bias", ("unembed/bias",), "V"),
            Row(f"{MLM}.decoder.weight", ("unembed/tokens",), "V,D"),
        ),
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
