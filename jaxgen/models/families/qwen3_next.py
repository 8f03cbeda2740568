"""Qwen3-Next (2025): three layers of the gated delta rule for one of attention, with experts."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import llama, mixtral
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.layer_kinds import DELTAS
from jaxgen.models.families.mixtral import NORMALISE
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED, Theirs, rope

CHOICES = llama.CHOICES | {"norm": "rms_offset", "qk_norm": "head", "scores.gate": "sigmoid"}
DEFAULTS = llama.DEFAULTS | {
    "num_key_value_heads": 2,
    "head_dim": 256,
    "attention_bias": False,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
SHARED: dict[str, Any] = llama.SHARED | {
    # Layers that predict tokens after the next, which transformers leaves out as well.
    "ignored_tensors": (*llama.SHARED["ignored_tensors"], "mtp.*"),
}
_RULE = "attn/rate"  # which only layers of the delta rule have
_OWN = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")
LAYER_ROWS = (
    Row(_OWN[0], ("attn/q", "attn/gate"), "N*H,D", unless=_RULE),
    Row(_OWN[1], ("attn/q_bias", "attn/gate_bias"), "N*H", unless=_RULE),
    *(
        row._replace(unless=_RULE) if row.theirs.startswith("self_attn") else row
        for row in llama.LAYER_ROWS
        if row.theirs not in _OWN
    ),
    Row("linear_attn.conv1d.weight", ("attn/q_conv", "attn/k_conv", "attn/v_conv"), "*KGH,1,W"),
    Row("linear_attn.A_log", (_RULE,), "KG"),
    Row("linear_attn.dt_bias", ("attn/step_bias",), "KG"),
    Row("linear_attn.norm.weight", ("attn/norm/scale",), "H"),
    Row("linear_attn.out_proj.weight", ("attn/o",), "D,KGH", beside=_RULE),
)
_QKV = ("attn/q", "attn/k", "attn/v")
PROJECTIONS = (
    Row("linear_attn.in_proj_qkvz.weight", (*_QKV, "attn/gate"), "K*GH,D", beside=_RULE),
    Row("linear_attn.in_proj_ba.weight", ("attn/beta", "attn/step"), "K*G,D"),
)
EXPERTS = {
    "number": "num_experts",
    "active": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "shared": "shared_expert_intermediate_size",
}


def _read_experts(theirs: Theirs) -> dict[str, Any]:
    dense, every = theirs["mlp_only_layers"] or [], theirs["decoder_sparse_step"]
    layers = range(theirs["num_hidden_layers"])
    sparse = [i for i in layers if i not in dense and (i + 1) % every == 0]
    if not theirs["num_experts"] or not sparse:
        return {}
    if len(sparse) < len(layers):
        raise CheckpointError(
            f"mlp_only_layers and decoder_sparse_step give experts to {len(sparse)} of "
            f"{len(layers)} layers; known are all or none"
        )
    fields = {f"experts.{ours}": theirs[key] for ours, key in EXPERTS.items()}
    return fields | {"experts.shared_gate": "sigmoid", **NORMALISE.read(theirs)}


def _write_experts(config: ModelConfig) -> dict[str, Any]:
    ours, none = config.experts, {"mlp_only_layers": [], "decoder_sparse_step": 1}
    if not ours.number:
        return none | {"mlp_only_layers": list(range(config.layers))}
    width = {"moe_intermediate_size": ours.width(config.F)}
    fields = {key: getattr(ours, name) for name, key in EXPERTS.items()}
    return {**none, **fields, **width, **NORMALISE.write(config)}


SPARSE = Quirk(
    ("mlp_only_layers", "decoder_sparse_step", "norm_topk_prob", *EXPERTS.values()),
    _read_experts,
    _write_experts,
)
EXPERT_ROWS = (
    *mixtral.expert_rows("mlp", "gate_proj", "up_proj", "down_proj"),
    *mixtral.shared_rows("mlp.shared_expert"),
    Row("mlp.shared_expert_gate.weight", ("experts/shared_gate",), "E,D"),
)

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    heads={
        "Qwen3NextForSequenceClassification": "classes",
        "Qwen3NextForTokenClassification": "token_classes",
        "Qwen3NextModel": "none",
    },
    head_rows=llama.SCORE,
    choices=CHOICES,
    defaults=DEFAULTS
    | {"mlp_only_layers": [], "decoder_sparse_step": 1, "num_experts": 512}
    | {"num_experts_per_tok": 10, "moe_intermediate_size": 512, "norm_topk_prob": True}
    | {"shared_expert_intermediate_size": 512},
    ignored=frozenset({"output_router_logits", "router_aux_loss_coef"}),
    quirks=(TIED, GATED, rope(partial=True), ATTENTION_BIAS, DELTAS, SPARSE),
    layer_rows=LAYER_ROWS + PROJECTIONS + EXPERT_ROWS,
    **SHARED,
)
