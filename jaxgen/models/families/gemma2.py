"""Gemma 2 (Google 2024): norms on both sides, soft caps, every other layer with a window."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, gemma
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import MOST_WINDOWS
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED, whole
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row

CHOICES = gemma.CHOICES | {"norm_at": "both"}
CAPS = {"scores.cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": decoders.SIZES | CAPS}
ONLY = {
    "hidden_activation": (gemma.TANH,),
    "hidden_act": (gemma.TANH,),
    "use_bidirectional_attention": (False, None),
}
DEFAULTS = gemma.DEFAULTS | {
    "num_key_value_heads": 4,
    "hidden_activation": gemma.TANH,
    "hidden_act": gemma.TANH,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
QUERY = whole("scores.query_scalar", "query_pre_attn_scalar")
LAYER_ROWS = (
    Row("input_layernorm.weight", ("attn_norm/scale",), "D"),
    Row("post_attention_layernorm.weight", ("attn_out_norm/scale",), "D"),
    Row("pre_feedforward_layernorm.weight", ("feed_norm/scale",), "D"),
    Row("post_feedforward_layernorm.weight", ("feed_out_norm/scale",), "D"),
    *decoders.SUBLAYERS,
)

FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    heads=decoders.heads("Gemma2", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    choices=CHOICES,
    defaults=DEFAULTS
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    | {"sliding_window_pattern": 2},
    only=ONLY,
    ignored=frozenset({"cache_implementation"}),
    quirks=(TIED, ROPE, ATTENTION_BIAS, MOST_WINDOWS, QUERY),
    layer_rows=LAYER_ROWS,
    **SHARED,
)
