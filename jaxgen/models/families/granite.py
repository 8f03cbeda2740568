"""Granite (IBM 2024): Llama with multipliers of embeddings, scores, residuals and logits."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import (
    ATTENTION_AND_FEED,
    GATED,
    SCORE_MULTIPLIER,
    TIED,
    multiplier,
)
from jaxgen.models.families.ropes import ROPE

SIZES = decoders.SIZES | {"residual_scale": "residual_multiplier"}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}
MULTIPLIERS = (
    multiplier("embed.scale", "embedding_multiplier"),
    multiplier("output_scale", "logits_scaling"),
    SCORE_MULTIPLIER,
)
DEFAULTS = decoders.DEFAULTS | dict.fromkeys(
    ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"), 1.0
)

FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    heads=decoders.heads("Granite"),
    choices=decoders.CHOICES,
    defaults=DEFAULTS | {"attention_bias": False, "mlp_bias": False},
    quirks=(TIED, GATED, ROPE, ATTENTION_AND_FEED, *MULTIPLIERS),
    layer_rows=decoders.LAYER_ROWS,
    **SHARED,
)
