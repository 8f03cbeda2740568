"""OLMo 3 (Ai2 2025): OLMo 2 with windows, whose layers keep the rope that others stretch."""

from __future__ import annotations

from jaxgen.models.families import decoders, olmo2
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import layer_types, three_of_four, two_ropes
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED

FAMILY = Family(
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    heads=decoders.heads("Olmo3", "classes"),
    head_rows=decoders.SCORE,
    choices=olmo2.CHOICES,
    defaults=olmo2.DEFAULTS | {"sliding_window": 4096, "rope_theta": 5e5},
    quirks=(
        *(TIED, GATED, ATTENTION_BIAS),
        layer_types(three_of_four),
        two_ropes(three_of_four, key=None, theta=5e5),
    ),
    layer_rows=olmo2.LAYER_ROWS,
    **decoders.SHARED,
)
