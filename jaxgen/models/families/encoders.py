"""What BERT's kin have in common: names of settings and embeddings, and the heads they have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jaxgen.models.families.quirks import (
    FEED,
    SPANS,
    TIED,
    dropout,
    fixed,
    of_heads,
    one_of,
    token_classes,
)
from jaxgen.models.families.rows import Row, feed, linear, norm, queries

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
CONTEXT = {"context": "max_position_embeddings"}
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
    "attention_probs_dropout_prob": 0.1,
    "tie_word_embeddings": True,
}
ONLY: dict[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute", None),
}
IGNORED = frozenset({"classifier_dropout"})
OUTPUT = of_heads(("mlm",), TIED, fixed(output_bias="bias"))
QUIRKS = (
    *OUTPUT,
    one_of("feed", "hidden_act", FEED),
    dropout(("hidden_dropout_prob",), "attention_probs_dropout_prob"),
)
FEED_ROWS = (
    *feed("intermediate.dense", "output.dense"),
    *norm("output.LayerNorm", "feed_norm"),
)
OUTPUT_ROWS = (
    *linear("attention.output.dense", "attn/o", "D,NH"),
    *norm("attention.output.LayerNorm", "attn_norm"),
)


NAMES = ("query", "key", "value")
LAYER_ROWS = (*queries("attention.self.{}", names=NAMES), *OUTPUT_ROWS, *FEED_ROWS)


def rows(prefix: str) -> tuple[Row, ...]:
    """Return the rows of the embeddings."""
    at = f"{prefix}.embeddings"
    return (
        Row(f"{at}.word_embeddings.weight", ("embed/tokens",), "V,D"),
        Row(f"{at}.position_embeddings.weight", ("embed/positions",), "S,D"),
        Row(f"{at}.token_type_embeddings.weight", ("embed/types",), "Y,D"),
        *norm(f"{at}.LayerNorm", "embed/norm"),
    )


def project(name: str) -> tuple[Row, ...]:
    """Return the rows of the projection of the sum of all embeddings."""
    return _square(name, "embed/project")


def dense(name: str, last: str = "") -> tuple[Row, ...]:
    """Return the rows of a head's dense layer, and of the projection after it."""
    return _square(name, "head/dense") + (token_classes(last) if last else ())


def _square(name: str, ours: str) -> tuple[Row, ...]:
    return (Row(f"{name}.weight", (ours,), "O,D"), Row(f"{name}.bias", (f"{ours}_bias",), "D"))


def normed(layer: str, behind: str) -> tuple[Row, ...]:
    """Return the rows of a head's dense layer and of the norm behind it."""
    return (*dense(layer), *norm(behind, "head/norm"))


def mlm(layer: str, behind: str, table: str, bias: str = "") -> tuple[Row, ...]:
    """Return the rows of a head of masked tokens; bias: where it is not with the table."""
    return (
        *normed(layer, behind),
        Row(bias or f"{table}.bias", ("unembed/bias",), "V"),
        Row(f"{table}.weight", ("unembed/tokens",), "V,D"),
    )


def classes(name: str, base: str = "none", **more: str) -> dict[str, Any]:
    """Return the classes of a family whose names begin with `name`, as fields of a Family.

    base: the head of the class without one. more: other classes, and the heads they have.
    """
    heads = {
        f"{name}ForMaskedLM": "mlm",
        f"{name}ForSequenceClassification": "classes",
        f"{name}ForTokenClassification": "token_classes",
        f"{name}ForQuestionAnswering": "spans",
        f"{name}Model": base,
    }
    return {"architecture": f"{name}ForMaskedLM", "heads": heads | more}


def parts(
    prefix: str,
    masked: tuple[str, ...],
    pooled: tuple[str, str],
    pooler: str = "",
    *,
    tokens: tuple[Row, ...] = token_classes("classifier"),
    more: tuple[Row, ...] = (),
    copies: Mapping[str, str] = MappingProxyType({}),
    ignored: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the tensors around the layers, as fields of a Family.

    masked: arguments of `mlm`. pooled: the names of the layers of the head of a text's class.
    pooler: that of BERT's vector of the text, if the family has it. tokens: the head of a token's
    class. more, copies, ignored: beside what all have.
    """
    table, bias = masked[2], masked[3:]
    same = {f"{table}.weight": f"{prefix}.embeddings.word_embeddings.weight"}
    same |= {f"{table}.bias": bias[0]} if bias else {}
    heads = {"mlm": mlm(*masked), "classes": dense(*pooled), "token_classes": tokens}
    return {
        "prefix": f"{prefix}.",
        "rows": (*rows(prefix), *more),
        "head_rows": heads | {"spans": SPANS} | ({"pooled": dense(pooler)} if pooler else {}),
        "copies": {**same, **copies},
        "ignored_tensors": (f"{prefix}.embeddings.position_ids", f"{prefix}.pooler.*", *ignored),
    }
