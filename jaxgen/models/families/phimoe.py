"""Phi 3.5 MoE (Microsoft 2024): Mixtral with layer norms, longrope and a sparse mixer."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtral, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.mixtures import BALANCE
from jaxgen.models.families.quirks import GATED, TIED, one_of
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row

ROWS = (*decoders.ROWS, Row("lm_head.bias", ("unembed/bias",), "V"))
SHARED: dict[str, Any] = mixtral.SHARED | {"rows": ROWS}

FAMILY = Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    heads={"PhiMoEForCausalLM": "lm"} | decoders.heads("Phimoe", "classes"),
    head_rows=decoders.SCORE,
    choices={"norm": "layer", "positions": "rope", "experts.router": "sparsemixer"},
    defaults=mixtures.DEFAULTS
    | {"num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2}
    | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None}
    | {"attention_bias": False, "lm_head_bias": False, "router_jitter_noise": 0.01},
    # How near the best an expert must be to be weighed with it.
    only={"router_jitter_noise": (0.01,)},
    aliases={"num_experts": "num_local_experts"},
    ignored=frozenset({"input_jitter_noise", "hidden_dropout"}),
    quirks=(
        *(TIED, GATED, ONE_WINDOW, BALANCE),
        rope(gains=("short_mscale", "long_mscale")),
        one_of("biases", "attention_bias", {True: "attention", False: "norms"}),
        one_of("output_bias", "lm_head_bias", {True: "bias", False: "none"}),
    ),
    layer_rows=mixtral.ROWS,
    **SHARED,
)
