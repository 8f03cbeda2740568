"""ModernBERT read from left to right (Weller et al. 2025, Ettin): a decoder of the same layers."""

from __future__ import annotations

from dataclasses import replace

from jaxgen.models.families import encoders, modernbert
from jaxgen.models.families import modernbert_kin as kin
from jaxgen.models.families.layer_kinds import layer_types
from jaxgen.models.families.rows import queries

LAYERS = layer_types(kin.KINDS, (kin.EVERY,), half=(kin.WINDOW, 0))

FAMILY = replace(
    modernbert.FAMILY,
    model_type="modernbert-decoder",
    architecture="ModernBertDecoderForCausalLM",
    heads={"ModernBertDecoderModel": "none"},
    choices={"norm": "layer", "positions": "rope", "embed.norm": "first"},
    quirks=(LAYERS, *kin.QUIRKS),
    layer_rows=(
        *queries("attn.{}_proj"),
        *kin.LAYER_ROWS,
    ),
    absent={"bos_token_id": 0, "pad_token_id": 0},
    head_rows={"lm": encoders.mlm("lm_head.dense", "lm_head.norm", "decoder")},
)
