"""Qwen 3.5 (2026), text only: Qwen3-Next without experts, its projections apart."""

from __future__ import annotations

from jaxgen.models.families import decoders, deltas
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.ropes import rope

FAMILY = Family(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    heads={"Qwen3_5TextForSequenceClassification": "classes", "Qwen3_5TextModel": "none"},
    head_rows=decoders.SCORE,
    choices=deltas.CHOICES,
    defaults=deltas.DEFAULTS | {"num_key_value_heads": 4, "attn_output_gate": True},
    only={"attn_output_gate": (True,)},
    ignored=deltas.IGNORED,
    quirks=(TIED, GATED, rope(partial=True), ATTENTION_BIAS, deltas.DELTAS),
    layer_rows=deltas.LAYER_ROWS + deltas.PROJECTIONS,
    **deltas.SHARED,
)
