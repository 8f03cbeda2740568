"""ALBERT (Lan et al. 2020): few layers applied again and again, behind narrower tables.

A hidden group holds layers that follow one another, and is applied as often as there are
num_hidden_layers for each group.
"""

from __future__ import annotations

from jaxgen.models.families import encoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import SHARED_GROUPS
from jaxgen.models.families.rows import feed, linear, norm, queries

MASKED = ("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias")
POOLER = "albert.pooler"
PROJECT = encoders.project("albert.encoder.embedding_hidden_mapping_in")

FAMILY = Family(
    model_type="albert",
    layer="albert.encoder.albert_layer_groups.{}.albert_layers.{}.",
    sizes=encoders.SIZES | encoders.CONTEXT | {"embed.width": "embedding_size"},
    choices=encoders.CHOICES,
    defaults=encoders.DEFAULTS
    | {"embedding_size": 128, "hidden_act": "gelu_new"}
    | {"num_hidden_groups": 1, "inner_group_num": 1}
    | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    only=encoders.ONLY,
    # Of the first layers' kinds of dropout, and of a network that hid layers behind a gate.
    ignored=encoders.IGNORED
    | frozenset("classifier_dropout_prob net_structure_type gap_size num_memory_blocks".split())
    | frozenset("down_scale_factor".split()),
    quirks=(*encoders.QUIRKS, SHARED_GROUPS),
    layer_rows=(
        *queries("attention.{}", names=encoders.NAMES),
        *linear("attention.dense", "attn/o", "D,NH"),
        *norm("attention.LayerNorm", "attn_norm"),
        *feed("ffn", "ffn_output"),
        *norm("full_layer_layer_norm", "feed_norm"),
    ),
    **encoders.classes("Albert", base="pooled", AlbertForPreTraining="mlm"),
    **encoders.parts(
        "albert",
        *(MASKED, (POOLER, "classifier"), POOLER),
        more=PROJECT,
        ignored=("sop_classifier.*",),
    ),
)
