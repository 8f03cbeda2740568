"""Gemma 4, text only (Google 2026): wide heads in global layers, shared keys, vectors by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.models.families import gemma, gemma3n, llama, mixtures
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED, Theirs
from jaxgen.models.families.rows import Row
from jaxgen.models.families.shared_keys import LAYERS_4, VECTORS

_NAMES = {"number": "num_experts", "active": "top_k_experts", "d_ff": "moe_intermediate_size"}


def _read_experts(theirs: Theirs) -> dict[str, Any]:
    if not theirs["enable_moe_block"]:
        return {}
    fields = {f"experts.{ours}": theirs[key] for ours, key in _NAMES.items()}
    return fields | {"experts.norms": "own", "experts.shared": theirs["intermediate_size"]}


def _write_experts(config: ModelConfig) -> dict[str, Any]:
    own, on = config.experts, config.experts.number > 0
    return {"enable_moe_block": on} | {
        k: getattr(own, n) if on else None for n, k in _NAMES.items()
    }


EXPERTS = Quirk(("enable_moe_block", *_NAMES.values()), _read_experts, _write_experts)
EXPERT_ROWS = (
    *mixtures.shared_rows("mlp"),
    Row("router.proj.weight", ("experts/router",), "E,D"),
    Row("router.scale", ("experts/router_norm/scale",), "D"),
    Row("router.per_expert_scale", ("experts/router_gain",), "E"),
    Row("experts.gate_up_proj", ("experts/gate", "experts/up"), "E,*F,D"),
    Row("experts.down_proj", ("experts/down",), "E,D,F"),
    Row("pre_feedforward_layernorm_2.weight", ("experts/in_norm/scale",), "D"),
    Row("post_feedforward_layernorm_1.weight", ("experts/shared_norm/scale",), "D"),
    Row("post_feedforward_layernorm_2.weight", ("experts/out_norm/scale",), "D"),
)
FIELDS: dict[str, Any] = gemma3n.SHARED | {
    "sizes": llama.SIZES | {"logit_cap": "final_logit_softcapping"},
    "rows": (*llama.ROWS, *gemma3n.VECTOR_ROWS),
}

FAMILY = Family(
    model_type="gemma4_text",
    architecture="Gemma4ForCausalLM",
    heads={"Gemma4TextModel": "none"},
    choices=gemma3n.CHOICES | {"residual.gain": "learned"},
    defaults=gemma3n.DEFAULTS
    | {"num_key_value_heads": 4, "final_logit_softcapping": None, "num_kv_shared_layers": 0}
    | {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144}
    | {"attention_k_eq_v": False, "use_double_wide_mlp": False, "enable_moe_block": False}
    | {"global_head_dim": 512, "num_global_key_value_heads": None},
    only={"hidden_activation": (gemma.TANH,), "use_bidirectional_attention": (None, "vision")},
    quirks=(TIED, ATTENTION_BIAS, LAYERS_4, VECTORS, EXPERTS),
    layer_rows=(*gemma3n.LAYER_ROWS, Row("layer_scalar", ("gain",), "1"), *EXPERT_ROWS),
    **FIELDS,
)
# Without vectors by layer and without experts.
UNIFIED = replace(
    FAMILY,
    model_type="gemma4_unified_text",
    architecture="Gemma4UnifiedForCausalLM",
    heads={"Gemma4UnifiedTextModel": "none"},
    quirks=(TIED, ATTENTION_BIAS, LAYERS_4),
)
