"""Qwen 3.5 with experts (2026), text only: they are in every layer, with a gated one for all."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import deltas, mixtures, qwen2_moe
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.ropes import rope

# No layer has a feed-forward beside its experts.
SIZES = {ours: key for ours, key in qwen2_moe.SIZES.items() if ours != "d_ff"}
SHARED: dict[str, Any] = deltas.SHARED | {"sizes": SIZES, "other_rows": mixtures.FUSED}

FAMILY = Family(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    heads={"Qwen3_5MoeTextModel": "none"},
    choices=deltas.CHOICES | {"experts.shared_gate": "sigmoid"},
    defaults=deltas.DEFAULTS
    | {"num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512}
    | {"shared_expert_intermediate_size": 512},
    only={"attn_output_gate": (True,), "mlp_only_layers": ([],), "norm_topk_prob": (True,)},
    aliases={"num_local_experts": "num_experts"},
    ignored=deltas.IGNORED | {"intermediate_size"},
    quirks=(TIED, GATED, rope(partial=True), ATTENTION_BIAS, deltas.DELTAS),
    layer_rows=(
        *deltas.LAYER_ROWS,
        *deltas.PROJECTIONS,
        *mixtures.ROWS,
        *mixtures.GATED_SHARED,
    ),
    **SHARED,
)
