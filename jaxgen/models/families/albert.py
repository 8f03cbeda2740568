"""ALBERT (Lan et al. 2020): one layer applied again and again, behind tables of a smaller width."""

from __future__ import annotations

from jaxgen.models.families import bert
from jaxgen.models.families.family import Family, Row, linear, norm
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, dropout, one_of, token_classes

FAMILY = Family(
    model_type="albert",
    architecture="AlbertForMaskedLM",
    heads=bert.heads("Albert") | {"AlbertForPreTraining": "mlm"},
    prefix="albert.",
    layer="albert.encoder.albert_layer_groups.0.albert_layers.{}.",
    sizes=bert.SIZES | {"context": "max_position_embeddings", "embed.width": "embedding_size"},
    choices=bert.CHOICES | {"layer_weights": "shared"},
    defaults=bert.DEFAULTS
    | {"embedding_size": 128, "hidden_act": "gelu_new"}
    | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    only={"num_hidden_groups": (1,), "inner_group_num": (1,)} | bert.ONLY,
    # Of the first layers' kinds of dropout, and of a network that hid layers behind a gate.
    ignored=bert.IGNORED
    | frozenset("classifier_dropout_prob net_structure_type gap_size num_memory_blocks".split())
    | frozenset("down_scale_factor".split()),
    quirks=(
        bert.OUTPUT,
        one_of("feed", "hidden_act", FEED),
        dropout(("hidden_dropout_prob",), "attention_probs_dropout_prob"),
    ),
    rows=(*bert.rows("albert."), *bert.project("albert.encoder.embedding_hidden_mapping_in")),
    layer_rows=(
        *linear("attention.query", "attn/q", "NH,D"),
        *linear("attention.key", "attn/k", "NH,D"),
        *linear("attention.value", "attn/v", "NH,D"),
        *linear("attention.dense", "attn/o", "D,NH"),
        *norm("attention.LayerNorm", "attn_norm"),
        *linear("ffn", "feed/up", "F,D"),
        *linear("ffn_output", "feed/down", "D,F"),
        *norm("full_layer_layer_norm", "feed_norm"),
    ),
    head_rows={
        "mlm": (
            *bert.dense("predictions.dense"),
            *norm("predictions.LayerNorm", "head/norm"),
            Row("predictions.bias", ("unembed/bias",), "V"),
            Row("predictions.decoder.weight", ("unembed/tokens",), "V,D"),
        ),
        "classes": bert.dense("albert.pooler", "classifier"),
        "pooled": bert.dense("albert.pooler"),
        "token_classes": token_classes("classifier"),
        "spans": SPANS,
    },
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    ignored_tensors=("albert.embeddings.position_ids", "albert.pooler.*", "sop_classifier.*"),
)
