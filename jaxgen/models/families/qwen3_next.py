"""Qwen3-Next (2025): three layers of the gated delta rule for one of attention; no experts here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import llama
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.layer_kinds import DELTAS
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED, rope

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
IGNORED = frozenset(
    "moe_intermediate_size norm_topk_prob num_experts num_experts_per_tok output_router_logits "
    "router_aux_loss_coef shared_expert_intermediate_size".split()
)


def _read_dense(theirs: Mapping[str, Any]) -> dict[str, Any]:
    dense, every = theirs["mlp_only_layers"] or [], theirs["decoder_sparse_step"]
    layers = range(theirs["num_hidden_layers"])
    sparse = [i for i in layers if i not in dense and (i + 1) % every == 0]
    if theirs["num_experts"] and sparse:
        raise CheckpointError(
            f"num_experts={theirs['num_experts']!r:.60}: layer {sparse[0]} has experts, which are "
            f"not known for this family; mlp_only_layers names the layers without"
        )
    return {}


def _write_dense(config: ModelConfig) -> dict[str, Any]:
    return {"mlp_only_layers": list(range(config.layers)), "decoder_sparse_step": 1}


DENSE = Quirk(("mlp_only_layers", "decoder_sparse_step"), _read_dense, _write_dense)

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
    defaults=DEFAULTS | {"mlp_only_layers": [], "decoder_sparse_step": 1, "num_experts": 512},
    ignored=IGNORED,
    quirks=(TIED, GATED, rope(partial=True), ATTENTION_BIAS, DELTAS, DENSE),
    layer_rows=LAYER_ROWS + PROJECTIONS,
    **SHARED,
)
