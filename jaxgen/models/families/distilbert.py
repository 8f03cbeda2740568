"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler, half as deep."""

from __future__ import annotations

from jaxgen.models.families import encoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, dropout, fixed, of_heads, one_of
from jaxgen.models.families.rows import feed, linear, norm, queries

MASKED = ("vocab_transform", "vocab_layer_norm", "vocab_projector")

FAMILY = Family(
    model_type="distilbert",
    layer="distilbert.transformer.layer.{}.",
    sizes={
        "vocab_size": "vocab_size",
        "layers": "n_layers",
        "d_model": "dim",
        "heads": "n_heads",
        "d_ff": "hidden_dim",
        "context": "max_position_embeddings",
        "init_std": "initializer_range",
    },
    choices=encoders.CHOICES | {"norm_epsilon": 1e-12},
    defaults={
        "initializer_range": 0.02,
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "tie_word_embeddings": True,
    },
    aliases={
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    },
    # The waves are where training begins, and in the file as all vectors are.
    ignored=frozenset("sinusoidal_pos_embds qa_dropout seq_classif_dropout tie_weights_".split()),
    quirks=(
        *encoders.OUTPUT,
        one_of("feed", "activation", FEED),
        dropout(("dropout",), "attention_dropout"),
        *of_heads(("classes",), fixed(head_layer__activation="relu")),
    ),
    layer_rows=(
        *queries("attention.{}_lin"),
        *linear("attention.out_lin", "attn/o", "D,NH"),
        *norm("sa_layer_norm", "attn_norm"),
        *feed("ffn.lin1", "ffn.lin2"),
        *norm("output_layer_norm", "feed_norm"),
    ),
    **encoders.classes("DistilBert"),
    **encoders.parts("distilbert", MASKED, ("pre_classifier", "classifier")),
)
