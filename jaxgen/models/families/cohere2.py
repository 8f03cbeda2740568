"""Command R7B and A (Cohere 2024): parallel blocks; layers with a window turn, others don't."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import cohere
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import every_nth, layer_types

SIZES = {ours: key for ours, key in cohere.SIZES.items() if ours != "head_dim"}
SHARED: dict[str, Any] = cohere.SHARED | {"sizes": SIZES}

FAMILY = Family(
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    heads={"Cohere2Model": "none"},
    choices=cohere.CHOICES,
    defaults=cohere.DEFAULTS | {"sliding_window": 4096, "sliding_window_pattern": 4},
    only=cohere.ONLY,
    ignored=cohere.IGNORED
    | {"cache_implementation", "head_dim", "order_of_interleaved_layers", "rotary_pct"},
    quirks=(
        *cohere.QUIRKS,
        layer_types(every_nth, ("sliding_window_pattern",), unturned=lambda theirs: True),
    ),
    layer_rows=cohere.LAYER_ROWS,
    **SHARED,
)
