"""GLM-4.5 (Zeng et al. 2025): dense layers first, then sigmoid routing with a bias and groups."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, TIED, one_of
from jaxgen.models.families.ropes import rope

SHARED: dict[str, Any] = decoders.SHARED | {
    # Layers that predict tokens after the next, which transformers leaves out as well.
    "ignored_tensors": (
        *decoders.SHARED["ignored_tensors"],
        "model.layers.46.*",
        "model.layers.92.*",
    ),
    "other_rows": mixtures.FUSED,
}

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    heads=decoders.heads("Glm4Moe"),
    choices=decoders.CHOICES,
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "attention_bias": False}
    | {"partial_rotary_factor": 0.5, "use_qk_norm": False, "norm_topk_prob": True}
    | {"n_routed_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408}
    | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "n_shared_experts": 1}
    | {"first_k_dense_replace": 1},
    aliases={"num_local_experts": "n_routed_experts"},
    only=mixtures.SIGMOID_ONLY,
    ignored=mixtures.IGNORED
    | {"num_nextn_predict_layers", "num_mtp_layers", "output_router_logits"}
    | {"router_aux_loss_coef"},
    quirks=(
        *(TIED, GATED, rope(partial=True), mixtures.SIGMOID),
        one_of("qk_norm", "use_qk_norm", {True: "head", False: "none"}),
        one_of("biases", "attention_bias", {False: "none", True: "qkv"}),
    ),
    layer_rows=(
        *decoders.LAYER_ROWS,
        *mixtures.ROWS,
        mixtures.CHOICE_BIAS,
        *mixtures.SHARED_EXPERTS,
    ),
    **SHARED,
)
