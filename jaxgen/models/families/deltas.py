"""Layers of the gated delta rule, and every nth of attention, as Qwen3-Next and 3.5 say them."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import decoders
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.layer_kinds import depth, shortest
from jaxgen.models.families.quirks import Theirs
from jaxgen.models.families.rows import Row

CHOICES = decoders.CHOICES | {"norm": "rms_offset", "qk_norm": "head", "scores.gate": "sigmoid"}
DEFAULTS = decoders.DEFAULTS | {
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
# Layers that predict tokens after the next, which transformers leaves out as well; the type of a
# state, which is float32 here.
IGNORED = frozenset(
    "mamba_ssm_dtype mtp_num_hidden_layers mtp_use_dedicated_embeddings output_router_logits "
    "router_aux_loss_coef".split()
)
SHARED: dict[str, Any] = decoders.SHARED | {
    "ignored_tensors": (*decoders.SHARED["ignored_tensors"], "mtp.*"),
}
_RULE = "attn/rate"  # which only layers of the delta rule have
_OWN = ("self_attn.q_proj.weight", "self_attn.q_proj.bias")
LAYER_ROWS = (
    Row(_OWN[0], ("attn/q", "attn/gate"), "N*H,D", unless=_RULE),
    Row(_OWN[1], ("attn/q_bias", "attn/gate_bias"), "N*H", unless=_RULE),
    *(
        row._replace(unless=_RULE) if row.theirs.startswith("self_attn") else row
        for row in decoders.LAYER_ROWS
        if row.theirs not in _OWN
    ),
    Row("linear_attn.conv1d.weight", ("attn/q_conv", "attn/k_conv", "attn/v_conv"), "*KGH,1,W"),
    Row("linear_attn.A_log", (_RULE,), "KG"),
    Row("linear_attn.dt_bias", ("attn/step_bias",), "KG"),
    Row("linear_attn.norm.weight", ("attn/norm/scale",), "H"),
    Row("linear_attn.out_proj.weight", ("attn/o",), "D,KGH", beside=_RULE),
)
_QKV = ("attn/q", "attn/k", "attn/v")
FUSED_PROJECTIONS = (
    Row("linear_attn.in_proj_qkvz.weight", (*_QKV, "attn/gate"), "K*GH,D", beside=_RULE),
    Row("linear_attn.in_proj_ba.weight", ("attn/beta", "attn/step"), "K*G,D"),
)
PROJECTIONS = (
    Row("linear_attn.in_proj_qkv.weight", _QKV, "*KGH,D", beside=_RULE),
    Row("linear_attn.in_proj_z.weight", ("attn/gate",), "KGH,D", beside=_RULE),
    Row("linear_attn.in_proj_b.weight", ("attn/beta",), "KG,D"),
    Row("linear_attn.in_proj_a.weight", ("attn/step",), "KG,D"),
)
_SIZES = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_width": "linear_key_head_dim",
    "value_width": "linear_value_head_dim",
    "window": "linear_conv_kernel_dim",
}
_TYPES = {"full_attention": "global", "linear_attention": "linear"}


def _read(theirs: Theirs) -> dict[str, Any]:
    layers, nth = depth(theirs), theirs["full_attention_interval"]
    types = theirs.get("layer_types")
    if types is None and type(nth) is int and nth > 0:
        types = ["linear_attention" if (i + 1) % nth else "full_attention" for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers or not {*types} <= _TYPES.keys():
        known = ", ".join(_TYPES)
        raise CheckpointError(
            f"layer_types={types!r:.60} does not name one kind for each of {layers} layers; known "
            f"are {known}"
        )
    fields: dict[str, Any] = {"pattern": shortest([_TYPES[name] for name in types])}
    if "linear_attention" in types:
        fields["kinds.linear.mixer"] = "delta"
        fields |= {f"delta.{ours}": theirs[key] for ours, key in _SIZES.items()}
    return fields


def _write(config: ModelConfig) -> dict[str, Any]:
    mixers = {"attention": "full_attention", "delta": "linear_attention"}
    sizes = {} if config.delta is None else vars(config.delta)
    return {
        "layer_types": [mixers[config.mixer(kind)] for kind in config.pattern],
        **{_SIZES[ours]: value for ours, value in sizes.items()},
    }


DELTAS = Quirk(("layer_types", "full_attention_interval", *_SIZES.values()), _read, _write)
