"""Gemma 3, text only (Google 2025): normalised queries and keys, a rotary base for local layers."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, gemma2
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import MOST_WINDOWS, TWO_ROPES
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED

SIZES = decoders.SIZES | {"logit_cap": "final_logit_softcapping"}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}

FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    heads={"Gemma3TextForSequenceClassification": "classes", "Gemma3TextModel": "none"},
    head_rows=decoders.SCORE,
    choices=gemma2.CHOICES | {"qk_norm": "head"},
    defaults=gemma2.DEFAULTS
    | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    | {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}
    | {"sliding_window_pattern": 6},
    # Its attention has no soft cap, whatever the key says.
    only=gemma2.ONLY | {"attn_logit_softcapping": (None,)},
    # transformers saves it beside layer_types, which alone it reads.
    ignored=frozenset({"_sliding_window_pattern"}),
    quirks=(TIED, TWO_ROPES, ATTENTION_BIAS, MOST_WINDOWS, gemma2.QUERY),
    layer_rows=gemma2.LAYER_ROWS,
    **SHARED,
)
