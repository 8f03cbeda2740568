"""Gemma 4 that reads pixels and sounds as it does tokens (Google 2026), text only."""

from __future__ import annotations

from dataclasses import replace

from jaxgen.models.families import gemma4
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED
from jaxgen.models.families.shared_keys import LAYERS_4

# Without vectors by layer and without experts.
FAMILY = replace(
    gemma4.FAMILY,
    model_type="gemma4_unified_text",
    architecture="Gemma4UnifiedForCausalLM",
    heads={"Gemma4UnifiedTextModel": "none"},
    defaults={**gemma4.FAMILY.defaults, "sliding_window": 1024},
    quirks=(TIED, ATTENTION_BIAS, LAYERS_4),
)
