"""DeepSeek-V2 (2024): Llama with latent attention, and experts behind the first layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.config_experts import Experts
from jaxgen.errors import CheckpointError
from jaxgen.models.families import llama, mixtral
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED, Theirs, rope

SIZES = {ours: key for ours, key in llama.SIZES.items() if ours != "head_dim"} | {
    "latent.q_rank": "q_lora_rank",
    "latent.kv_rank": "kv_lora_rank",
    "latent.rope_width": "qk_rope_head_dim",
    "latent.plain_width": "qk_nope_head_dim",
    "latent.value_width": "v_head_dim",
}
CHOICES = llama.CHOICES | {"rope.pairs": "neighbours"}
DEFAULTS = llama.DEFAULTS | {
    "attention_bias": False,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
    "routed_scaling_factor": 1.0,
    "n_group": None,
    "topk_group": None,
}
SHARED: dict[str, Any] = llama.SHARED | {"sizes": SIZES}
LAYER_ROWS = (
    Row("self_attn.q_a_proj.weight", ("attn/q_down",), "Z,D"),
    Row("self_attn.q_a_proj.bias", ("attn/q_down_bias",), "Z"),
    Row("self_attn.q_a_layernorm.weight", ("attn/q_norm/scale",), "Z"),
    Row("self_attn.q_b_proj.weight", ("attn/q_up",), "NH,Z"),
    Row("self_attn.kv_a_proj_with_mqa.weight", ("attn/kv_down",), "Z,D"),
    Row("self_attn.kv_a_proj_with_mqa.bias", ("attn/kv_down_bias",), "Z"),
    Row("self_attn.kv_a_layernorm.weight", ("attn/kv_norm/scale",), "Z"),
    Row("self_attn.kv_b_proj.weight", ("attn/k_up", "attn/v_up"), "N*H,Z"),
    *(row for row in llama.LAYER_ROWS if not row.theirs.startswith("self_attn.q_norm")),
    *mixtral.expert_rows("mlp", "gate_proj", "up_proj", "down_proj"),
    *mixtral.shared_rows("mlp.shared_experts"),
)
# Widths that transformers derives, losses of routing, and what other code than transformers' reads.
IGNORED = frozenset(
    "aux_loss_alpha ep_size head_dim moe_layer_freq num_nextn_predict_layers output_router_logits "
    "qk_head_dim scoring_func seq_aux".split()
)
# How many experts, and where; absent where all layers are dense.
EXPERTS = {
    "number": "n_routed_experts",
    "active": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "scale": "routed_scaling_factor",
    "first_dense": "first_k_dense_replace",
}
KEYS = (*EXPERTS.values(), "n_shared_experts", "n_group", "topk_group", "topk_method")


def experts(
    read: Callable[[Theirs], dict[str, Any]], write: Callable[[Experts], dict[str, Any]]
) -> Quirk:
    """Return the quirk of experts behind the first dense layers, if there are layers behind them.

    read, write: of the router and its groups.
    """

    def of_theirs(theirs: Theirs) -> dict[str, Any]:
        dense, layers = theirs["first_k_dense_replace"], theirs["num_hidden_layers"]
        if type(dense) is not int or type(layers) is not int:
            raise CheckpointError(f"first_k_dense_replace={dense!r:.60} is no number of layers")
        if dense >= layers:
            return {}
        fields = {ours: theirs[key] for ours, key in EXPERTS.items()}
        shared = (theirs["n_shared_experts"] or 0) * theirs["moe_intermediate_size"]
        fields |= {"shared": shared, **read(theirs)}
        return {f"experts.{name}": value for name, value in fields.items()}

    def of_ours(config: ModelConfig) -> dict[str, Any]:
        ours = config.experts
        if not ours.number:
            return {"first_k_dense_replace": config.layers}
        width = ours.width(config.F)
        fields = {key: getattr(ours, name) for name, key in EXPERTS.items()}
        fields |= {"moe_intermediate_size": width, "n_shared_experts": ours.shared // width}
        return {**fields, **write(ours)}

    return Quirk((*KEYS, "norm_topk_prob"), of_theirs, of_ours)


def _read_router(theirs: Theirs) -> dict[str, Any]:
    method = theirs["topk_method"]
    if method not in ("greedy", "group_limited_greedy"):
        raise CheckpointError(
            f"topk_method={method!r:.60} is not known here; known are 'greedy' and "
            f"'group_limited_greedy'"
        )
    # Its weights are never normalised, whatever norm_topk_prob says.
    fields: dict[str, Any] = {"normalise": "all"}
    if method == "greedy":
        return fields
    return fields | {"groups": theirs["n_group"], "active_groups": theirs["topk_group"]}


def _write_router(ours: Experts) -> dict[str, Any]:
    method = "greedy" if ours.groups == 1 else "group_limited_greedy"
    return {"n_group": ours.groups, "topk_group": ours.active_groups, "topk_method": method}


ROPE = rope(scores=True)

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    heads={"DeepseekV2ForSequenceClassification": "classes", "DeepseekV2Model": "none"},
    head_rows=llama.SCORE,
    choices=CHOICES,
    defaults=DEFAULTS | {"first_k_dense_replace": 0, "topk_method": "greedy"},
    aliases={"num_experts": "n_routed_experts"},
    only={"mlp_bias": (False,)},
    ignored=IGNORED,
    quirks=(TIED, GATED, ROPE, ATTENTION_BIAS, experts(_read_router, _write_router)),
    layer_rows=LAYER_ROWS,
    **SHARED,
)
