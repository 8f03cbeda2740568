"""Granite with experts (IBM 2024), which one tensor of a layer holds."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, granite, mixtral, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.mixtures import BALANCE
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row

SIZES = mixtral.SIZES | {"residual_scale": "residual_multiplier"}

SHARED_FIELDS: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}

FAMILY = Family(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    heads=decoders.heads("GraniteMoe"),
    choices=decoders.CHOICES,
    defaults=mixtures.DEFAULTS
    | granite.DEFAULTS
    | {"attention_bias": False, "num_local_experts": 8, "num_experts_per_tok": 2},
    ignored=mixtures.IGNORED,
    quirks=(TIED, GATED, ROPE, ATTENTION_BIAS, BALANCE, *granite.MULTIPLIERS),
    layer_rows=(
        *mixtures.ATTENTION,
        Row("block_sparse_moe.router.layer.weight", ("experts/router",), "E,D"),
        Row("block_sparse_moe.input_linear.weight", ("experts/gate", "experts/up"), "E,*F,D"),
        Row("block_sparse_moe.output_linear.weight", ("experts/down",), "E,D,F"),
    ),
    **SHARED_FIELDS,
)
