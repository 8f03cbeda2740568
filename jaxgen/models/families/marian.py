"""Marian (Junczys-Dowmunt et al. 2018): BART's layers with sinusoidal positions."""

from __future__ import annotations

from jaxgen.models.families import bart_kin
from jaxgen.models.families.family import Family

FAMILY = Family(
    model_type="marian",
    architecture="MarianMTModel",
    heads={"MarianModel": "none"},
    choices=bart_kin.CHOICES | {"positions": "sinusoid"},
    defaults=bart_kin.DEFAULTS | {"share_encoder_decoder_embeddings": True},
    rows=bart_kin.ROWS,
    **bart_kin.SHARED
    | {
        "only": {k: v for k, v in bart_kin.ONLY.items() if k != "static_position_embeddings"}
        | {"share_encoder_decoder_embeddings": (True,), "normalize_embedding": (False,)},
        # Its positions are waves anyhow.
        "ignored": bart_kin.IGNORED | {"decoder_vocab_size", "static_position_embeddings"},
    },
    # Waves, which files keep as if they were weights.
    ignored_tensors=("model.*.embed_positions.weight",),
)
