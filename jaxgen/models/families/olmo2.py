"""OLMo 2 (Ai2 2024): norms of outputs alone, queries and keys normalised over all heads."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row, norm

CHOICES = decoders.CHOICES | {"norm_at": "out", "qk_norm": "heads"}
DEFAULTS = decoders.DEFAULTS | {"rms_norm_eps": 1e-5, "attention_bias": False}
LAYER_ROWS = (
    *norm("post_attention_layernorm", "attn_out_norm"),
    *norm("post_feedforward_layernorm", "feed_out_norm"),
    Row("self_attn.q_norm.weight", ("attn/q_norm/scale",), "NH"),
    Row("self_attn.k_norm.weight", ("attn/k_norm/scale",), "KH"),
    *decoders.PROJECTIONS,
)

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    heads=decoders.heads("Olmo2", "classes"),
    head_rows=decoders.SCORE,
    choices=CHOICES,
    defaults=DEFAULTS,
    quirks=(TIED, GATED, ROPE, ATTENTION_BIAS),
    layer_rows=LAYER_ROWS,
    **decoders.SHARED,
)
