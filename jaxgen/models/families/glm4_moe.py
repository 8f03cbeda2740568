"""GLM-4.5 (Zeng et al. 2025): dense layers first, then sigmoid routing with a bias and groups."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import llama, mixtral
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.mixtral import NORMALISE
from jaxgen.models.families.quirks import GATED, TIED, one_of, rope

SIZES = llama.SIZES | {
    "experts.number": "n_routed_experts",
    "experts.active": "num_experts_per_tok",
    "experts.d_ff": "moe_intermediate_size",
    "experts.groups": "n_group",
    "experts.active_groups": "topk_group",
    "experts.scale": "routed_scaling_factor",
    "experts.first_dense": "first_k_dense_replace",
}
CHOICES = {"experts.router": "sigmoid", "experts.choice_bias": "bias"}
# Experts that all tokens have are one, as wide as they are together.
SHARED = Quirk(
    ("n_shared_experts",),
    lambda theirs: {
        "experts.shared": (theirs["n_shared_experts"] or 0) * (theirs["moe_intermediate_size"] or 0)
    },
    lambda config: {"n_shared_experts": config.experts.shared // config.experts.width(config.F)},
)
ROWS = (
    *(row for row in llama.SUBLAYERS if row.theirs.startswith("mlp.")),
    *mixtral.expert_rows("mlp", "gate_proj", "up_proj", "down_proj"),
    Row("mlp.gate.e_score_correction_bias", ("experts/choice_bias",), "E"),
    *mixtral.shared_rows("mlp.shared_experts"),
)

SHARED_FIELDS: dict[str, Any] = llama.SHARED | {
    "sizes": SIZES,
    "ignored_tensors": (
        *llama.SHARED["ignored_tensors"],
        "model.layers.46.*",
        "model.layers.92.*",
    ),
}

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    heads=llama.heads("Glm4Moe"),
    choices=llama.CHOICES | CHOICES,
    defaults=llama.DEFAULTS
    | {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "attention_bias": False}
    | {"partial_rotary_factor": 0.5, "use_qk_norm": False, "norm_topk_prob": True}
    | {"n_routed_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408}
    | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "n_shared_experts": 1}
    | {"first_k_dense_replace": 1},
    aliases={"num_local_experts": "n_routed_experts"},
    ignored=mixtral.IGNORED
    | {"num_nextn_predict_layers", "num_mtp_layers", "output_router_logits"}
    | {"router_aux_loss_coef"},
    quirks=(
        *(TIED, GATED, rope(partial=True), NORMALISE, SHARED),
        one_of("qk_norm", "use_qk_norm", {True: "head", False: "none"}),
        one_of("biases", "attention_bias", {False: "none", True: "qkv"}),
    ),
    layer_rows=(*mixtral.ATTENTION, *ROWS),
    **SHARED_FIELDS,
)
