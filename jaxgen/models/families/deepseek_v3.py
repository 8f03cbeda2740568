"""DeepSeek-V3 and R1 (2024): as V2, with experts chosen by sigmoids, a bias and groups."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, deepseek_v2, latents, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED, one_of

PAIRS = one_of("rope.pairs", "rope_interleave", {True: "neighbours", False: "halves"})
SHARED: dict[str, Any] = deepseek_v2.SHARED | {
    # Layers that predict tokens after the next, which transformers leaves out as well.
    "ignored_tensors": (*decoders.SHARED["ignored_tensors"], "model.layers.61.*"),
}

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    heads={
        "DeepseekV3ForSequenceClassification": "classes",
        "DeepseekV3ForTokenClassification": "token_classes",
        "DeepseekV3Model": "none",
    },
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=deepseek_v2.DEFAULTS
    | {"first_k_dense_replace": 3, "rope_interleave": True, "moe_intermediate_size": 2048}
    | {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8}
    | {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    aliases={"num_local_experts": "n_routed_experts"},
    only=mixtures.SIGMOID_ONLY,
    ignored=deepseek_v2.IGNORED | {"num_mtp_layers"},
    quirks=(TIED, GATED, latents.ROPE, PAIRS, ATTENTION_BIAS, mixtures.SIGMOID),
    layer_rows=(*deepseek_v2.LAYER_ROWS, mixtures.CHOICE_BIAS),
    **SHARED,
)
