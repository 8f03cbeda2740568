"""Qwen3-Next (2025): three layers of the gated delta rule for one of attention, with experts."""

from __future__ import annotations

from jaxgen.models.families import decoders, deltas, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.ropes import rope

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    heads={
        "Qwen3NextForSequenceClassification": "classes",
        "Qwen3NextForTokenClassification": "token_classes",
        "Qwen3NextModel": "none",
    },
    head_rows=decoders.SCORE,
    choices=deltas.CHOICES,
    defaults=deltas.DEFAULTS
    | {"mlp_only_layers": [], "decoder_sparse_step": 1, "num_experts": 512}
    | {"num_experts_per_tok": 10, "moe_intermediate_size": 512, "norm_topk_prob": True}
    | {"shared_expert_intermediate_size": 512},
    ignored=deltas.IGNORED,
    quirks=(TIED, GATED, rope(partial=True), ATTENTION_BIAS, deltas.DELTAS, mixtures.SPARSE),
    layer_rows=(
        *deltas.LAYER_ROWS,
        *deltas.FUSED_PROJECTIONS,
        *mixtures.ROWS,
        *mixtures.GATED_SHARED,
    ),
    other_rows=mixtures.FUSED,
    **deltas.SHARED,
)
