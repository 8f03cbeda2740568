"""Llama 4, text only (Meta 2025): chunks of attention, layers that don't turn, one expert each."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtral, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import CHUNK_GROWTH, CHUNKS
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED, one_of
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row

# Dense layers are wider than experts, of which each token has a shared one of their width.
SIZES = mixtral.SIZES | {
    "d_ff": "intermediate_size_mlp",
    "experts.d_ff": "intermediate_size",
    "experts.shared": "intermediate_size",
}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}
CHOICES = {"experts.router": "sigmoid", "experts.normalise": "all", "experts.weigh": "input"}

FAMILY = Family(
    model_type="llama4_text",
    architecture="Llama4ForCausalLM",
    heads={"Llama4TextModel": "none"},
    choices=decoders.CHOICES | CHOICES | {"rope.pairs": "neighbours"},
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
    | {"num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    | {"moe_layers": None, "no_rope_layer_interval": 4, "attention_chunk_size": 8192}
    | {"attn_temperature_tuning": True, "attn_scale": 0.1, "floor_scale": 8192}
    | {"use_qk_norm": True, "attention_bias": False},
    ignored=mixtures.IGNORED
    | {"output_router_logits", "router_aux_loss_coef", "for_llm_compressor"},
    quirks=(
        *(TIED, GATED, ROPE, ATTENTION_BIAS, CHUNKS, CHUNK_GROWTH),
        one_of("qk_norm", "use_qk_norm", {True: "unit", False: "none"}),
    ),
    layer_rows=(
        *mixtures.ATTENTION,
        *decoders.gated("feed_forward"),
        Row("feed_forward.router.weight", ("experts/router",), "E,D"),
        Row("feed_forward.experts.gate_up_proj", ("experts/gate", "experts/up"), "E,D,*F"),
        Row("feed_forward.experts.down_proj", ("experts/down",), "E,F,D"),
        *mixtures.shared_rows("feed_forward.shared_expert"),
    ),
    **SHARED,
)
