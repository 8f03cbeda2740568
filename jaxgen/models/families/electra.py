"""ELECTRA (Clark et al. 2020): a generator of tokens, and a discriminator of those it replaced."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.models.families import encoders
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import FEED, fixed, of_heads, token_classes

FOUND = "ElectraForPreTraining"


def _read(theirs) -> dict[str, Any]:
    width = theirs["embedding_size"]
    fields = {"embed.width": None if width == theirs["hidden_size"] else width}
    if (theirs.get("architectures") or [""])[0] != FOUND:
        return fields
    layer = {"head_layer.kind": "dense", "head_layer.activation": FEED.get(theirs["hidden_act"])}
    return {"classes": 1, **layer, **fields}


def _write(config: ModelConfig) -> dict[str, Any]:
    found = config.head == "token_classes" and config.head_kind == "dense"
    return {"embedding_size": config.embed_width} | ({"architectures": [FOUND]} if found else {})


MASKED = ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head")
LAST = "discriminator_predictions.dense_prediction"
TOKENS = (
    *encoders.dense("discriminator_predictions.dense"),
    *(row._replace(beside="head/dense") for row in token_classes(LAST)),
    *(row._replace(unless="head/dense") for row in token_classes("classifier")),
)
POOLED = ("classifier.dense", "classifier.out_proj")
PROJECT = encoders.project("electra.embeddings_project")

FAMILY = Family(
    model_type="electra",
    layer="electra.encoder.layer.{}.",
    sizes=encoders.SIZES | encoders.CONTEXT,
    choices=encoders.CHOICES,
    defaults=encoders.DEFAULTS | {"embedding_size": 128},
    only=encoders.ONLY,
    ignored=encoders.IGNORED
    | frozenset("summary_type summary_use_proj summary_activation summary_last_dropout".split()),
    quirks=(
        *encoders.QUIRKS,
        *of_heads(("mlm", "classes"), fixed(head_layer__activation="gelu")),
        Quirk(("embedding_size",), _read, _write),
    ),
    layer_rows=encoders.LAYER_ROWS,
    **encoders.classes("Electra", **{FOUND: "token_classes"}),
    **encoders.parts("electra", MASKED, POOLED, tokens=TOKENS, more=PROJECT),
)
