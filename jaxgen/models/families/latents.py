"""Latent attention as families say it: widths, tensors, and the rope of a part of each head."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row

SIZES = {ours: key for ours, key in decoders.SIZES.items() if ours != "head_dim"} | {
    "latent.q_rank": "q_lora_rank",
    "latent.kv_rank": "kv_lora_rank",
    "latent.rope_width": "qk_rope_head_dim",
    "latent.plain_width": "qk_nope_head_dim",
    "latent.value_width": "v_head_dim",
}
DEFAULTS = decoders.DEFAULTS | {"attention_bias": False}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}
ROPE = rope(scores=True)
LAYER_ROWS = (
    Row("self_attn.q_a_proj.weight", ("attn/q_down",), "Z,D"),
    Row("self_attn.q_a_proj.bias", ("attn/q_down_bias",), "Z"),
    Row("self_attn.q_a_layernorm.weight", ("attn/q_norm/scale",), "Z"),
    Row("self_attn.q_b_proj.weight", ("attn/q_up",), "NH,Z"),
    Row("self_attn.kv_a_proj_with_mqa.weight", ("attn/kv_down",), "Z,D"),
    Row("self_attn.kv_a_proj_with_mqa.bias", ("attn/kv_down_bias",), "Z"),
    Row("self_attn.kv_a_layernorm.weight", ("attn/kv_norm/scale",), "Z"),
    Row("self_attn.kv_b_proj.weight", ("attn/k_up", "attn/v_up"), "N*H,Z"),
    *(row for row in decoders.LAYER_ROWS if not row.theirs.startswith("self_attn.q_norm")),
)
