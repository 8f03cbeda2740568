"""StableLM 3B and 2 (Stability AI 2023): Llama with layer norms, of which a quarter turns."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, TIED, one_of
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row

SIZES = {ours: key for ours, key in decoders.SIZES.items() if ours != "head_dim"}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES | {"norm_epsilon": "layer_norm_eps"}}

# Of each head a tensor.
HEAD_NORMS = tuple(
    Row(f"self_attn.{x}_layernorm.norms.{{}}.weight", (f"attn/{x}_norm/scale",), "H") for x in "qk"
)

FAMILY = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    heads=decoders.heads("StableLm", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    choices={"norm": "layer", "positions": "rope"},
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 32, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25}
    | {"use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False},
    ignored=frozenset(
        {"hidden_dropout", "norm_eps", "rope_pct", "rotary_scaling_factor", "rms_norm_eps"}
    ),
    quirks=(
        *(TIED, GATED, rope(partial=True)),
        one_of("parallel", "use_parallel_residual", {False: "none", True: "one_norm"}),
        one_of("qk_norm", "qk_layernorm", {False: "none", True: "each"}),
        one_of("biases", "use_qkv_bias", {False: "norms", True: "qkv"}),
    ),
    layer_rows=(*decoders.NORMS, *decoders.PROJECTIONS, *HEAD_NORMS),
    **SHARED,
)
