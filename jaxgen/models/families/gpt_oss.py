"""gpt-oss (OpenAI 2025): experts with biases, clamped gates, sinks, every other window."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtral, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import depth, layer_types
from jaxgen.models.families.mixtures import BALANCE
from jaxgen.models.families.quirks import TIED, Theirs
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row


def _every_other(theirs: Theirs) -> list[str]:
    return ["full_attention" if i % 2 else "sliding_attention" for i in range(depth(theirs))]


FUSED = ("experts/gate", "experts/up")
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
YARN |= {"truncate": False, "original_max_position_embeddings": 4096}
SHARED_FIELDS: dict[str, Any] = decoders.SHARED | {"sizes": mixtral.SIZES}

FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    heads=decoders.heads("GptOss", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES
    | {"biases": "all", "feed": "swiglu_clamped", "scores.sinks": "learned"}
    | {"experts.router_bias": "bias"},
    defaults=mixtures.DEFAULTS
    | {"num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 150000.0}
    | {"num_local_experts": 128, "num_experts_per_tok": 4, "router_aux_loss_coef": 0.9}
    | {"sliding_window": 128, "attention_bias": True, "swiglu_limit": 7.0, "swiglu_alpha": 1.702},
    aliases={"experts_per_token": "num_experts_per_tok", "num_experts": "num_local_experts"},
    only={"attention_bias": (True,), "swiglu_limit": (7.0,), "swiglu_alpha": (1.702,)}
    | {"hidden_act": ("silu",)},
    ignored=mixtures.IGNORED | {"initial_context_length"},
    quirks=(TIED, rope(untold=YARN), layer_types(_every_other), BALANCE),
    layer_rows=(
        *mixtures.ATTENTION,
        Row("self_attn.sinks", ("attn/sinks",), "N"),
        Row("mlp.router.weight", ("experts/router",), "E,D"),
        Row("mlp.router.bias", ("experts/router_bias",), "E"),
        Row("mlp.experts.gate_up_proj", FUSED, "E,D,F*"),
        Row("mlp.experts.gate_up_proj_bias", ("experts/gate_bias", "experts/up_bias"), "E,F*"),
        Row("mlp.experts.down_proj", ("experts/down",), "E,F,D"),
        Row("mlp.experts.down_proj_bias", ("experts/down_bias",), "E,D"),
    ),
    **SHARED_FIELDS,
)
