"""Gemma 4, text only (Google 2026): wide heads in global layers, shared keys, vectors by layer."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, gemma, gemma2, gemma3n, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED
from jaxgen.models.families.rows import Row
from jaxgen.models.families.shared_keys import LAYERS_4, VECTOR_LAYER_ROWS, VECTOR_ROWS, VECTORS

ROWS_4 = (
    Row("layer_scalar", ("gain",), "1"),
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
    "sizes": decoders.SIZES | {"logit_cap": "final_logit_softcapping"},
    "rows": (*decoders.ROWS, *VECTOR_ROWS),
}

FAMILY = Family(
    model_type="gemma4_text",
    architecture="Gemma4ForCausalLM",
    heads={"Gemma4TextModel": "none"},
    choices=gemma3n.CHOICES | {"residual.gain": "learned"},
    defaults=gemma3n.DEFAULTS
    | {"num_key_value_heads": 4, "final_logit_softcapping": None, "num_kv_shared_layers": 0}
    | {"attention_k_eq_v": False, "use_double_wide_mlp": False, "enable_moe_block": False}
    | {"global_head_dim": 512, "num_global_key_value_heads": None},
    only={"hidden_activation": (gemma.TANH,), "use_bidirectional_attention": (None, "vision")},
    quirks=(TIED, ATTENTION_BIAS, LAYERS_4, VECTORS, mixtures.GEMMA4),
    layer_rows=(*gemma2.LAYER_ROWS, *VECTOR_LAYER_ROWS, *ROWS_4),
    **FIELDS,
)
