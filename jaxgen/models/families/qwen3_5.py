"""Qwen 3.5 (2026), text only: Qwen3-Next without experts, its projections apart."""

from __future__ import annotations

from jaxgen.models.families import llama, qwen3_next
from jaxgen.models.families.family import Family, Row
from jaxgen.models.families.layer_kinds import DELTAS
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED, rope

PROJECTIONS = (
    Row(
        "linear_attn.in_proj_qkv.weight",
        ("attn/q", "attn/k", "attn/v"),
        "*KGH,D",
        beside="attn/rate",
    ),
    Row("linear_attn.in_proj_z.weight", ("attn/gate",), "KGH,D", beside="attn/rate"),
    Row("linear_attn.in_proj_b.weight", ("attn/beta",), "KG,D"),
    Row("linear_attn.in_proj_a.weight", ("attn/step",), "KG,D"),
)

FAMILY = Family(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    heads={"Qwen3_5TextForSequenceClassification": "classes", "Qwen3_5TextModel": "none"},
    head_rows=llama.SCORE,
    choices=qwen3_next.CHOICES,
    defaults=qwen3_next.DEFAULTS | {"num_key_value_heads": 4},
    quirks=(TIED, GATED, rope(partial=True), ATTENTION_BIAS, DELTAS),
    layer_rows=qwen3_next.LAYER_ROWS + PROJECTIONS,
    **qwen3_next.SHARED,
)
