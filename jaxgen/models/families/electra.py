"""ELECTRA (Clark et al. 2020): a generator of tokens, and a discriminator of those it replaced."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.models.families import bert
from jaxgen.models.families.family import Family, Quirk, Row, norm
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, one_of

DISCRIMINATOR = "ElectraForPreTraining"


def _read_width(theirs) -> dict[str, Any]:
    width = theirs["embedding_size"]
    return {"embed.width": None if width == theirs["hidden_size"] else width}


def _write_width(config: ModelConfig) -> dict[str, Any]:
    return {"embedding_size": config.embed_width}


def _read_discriminator(theirs) -> dict[str, Any]:
    if (theirs.get("architectures") or [""])[0] != DISCRIMINATOR:
        return {}
    layer = {"head_layer.kind": "dense", "head_layer.activation": FEED.get(theirs["hidden_act"])}
    return {"classes": 1, **layer}


def _write_discriminator(config: ModelConfig) -> dict[str, Any]:
    found = config.head == "token_classes" and config.head_kind == "dense"
    return {"architectures": [DISCRIMINATOR]} if found else {}


FAMILY = Family(
    model_type="electra",
    architecture="ElectraForMaskedLM",
    heads=bert.heads("Electra", base="none") | {DISCRIMINATOR: "token_classes"},
    prefix="electra.",
    layer="electra.encoder.layer.{}.",
    sizes=bert.SIZES | {"context": "max_position_embeddings"},
    choices=bert.CHOICES,
    defaults=bert.DEFAULTS | {"embedding_size": 128},
    only=bert.ONLY,
    ignored=bert.IGNORED
    | frozenset("summary_type summary_use_proj summary_activation summary_last_dropout".split()),
    quirks=(
        bert.OUTPUT,
        Quirk(("embedding_size",), _read_width, _write_width),
        one_of("feed", "hidden_act", FEED),
        bert.activations(mlm="gelu", classes="gelu"),
        Quirk((), _read_discriminator, _write_discriminator),
        bert.DROPOUT,
    ),
    rows=(*bert.rows("electra."), *bert.project("electra.embeddings_project")),
    layer_rows=bert.LAYER_ROWS,
    head_rows={
        "mlm": (
            *bert.dense("generator_predictions.dense"),
            *norm("generator_predictions.LayerNorm", "head/norm"),
            Row("generator_lm_head.bias", ("unembed/bias",), "V"),
            Row("generator_lm_head.weight", ("unembed/tokens",), "V,D"),
        ),
        "classes": bert.dense("classifier.dense", "classifier.out_proj"),
        "token_classes": (
            *bert.dense("discriminator_predictions.dense"),
            *bert.out("discriminator_predictions.dense_prediction", beside="head/dense"),
            *bert.out("classifier", unless="head/dense"),
        ),
        "spans": SPANS,
    },
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    ignored_tensors=("electra.embeddings.position_ids",),
)
