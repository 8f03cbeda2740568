"""Marian (Junczys-Dowmunt et al. 2018): BART's layers with sinusoidal positions."""

from __future__ import annotations

from jaxgen.models.families import bart
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="marian",
    architecture="MarianMTModel",
    heads={"MarianModel": "none"},
    choices=bart.CHOICES | {"positions": "sinusoid"},
    defaults=bart.DEFAULTS | {"share_encoder_decoder_embeddings": True},
    rows=bart.ROWS,
    **bart.SHARED
    | {
        "only": {k: v for k, v in bart.ONLY.items() if k != "static_position_embeddings"}
        | {"share_encoder_decoder_embeddings": (True,), "normalize_embedding": (False,)},
        # Its positions are waves anyhow.
        "ignored": bart.IGNORED | {"decoder_vocab_size", "static_position_embeddings"},
    },
    # Waves, which files keep as if they were weights.
    ignored_tensors=("model.*.embed_positions.weight",),
)
