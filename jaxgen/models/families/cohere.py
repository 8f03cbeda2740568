"""Command R (Cohere 2024): attention and feed-forward in parallel, layer norms without biases."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, TIED, multiplier, one_of
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row

SIZES = decoders.SIZES | {"norm_epsilon": "layer_norm_eps"}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}
CHOICES = {"norm": "layer", "positions": "rope", "biases": "none", "parallel": "one_norm"}
CHOICES |= {"rope.pairs": "neighbours"}
DEFAULTS = decoders.DEFAULTS | {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}
# Biases of attention beside norms that have none.
ONLY = {"attention_bias": (False,), "use_parallel_block": (True,), "use_gated_activation": (True,)}
IGNORED = frozenset({"layer_switch", "position_embedding_type", "use_embedding_sharing"})
QUIRKS = (TIED, GATED, ROPE, multiplier("output_scale", "logit_scale", inverse=True))
LAYER_ROWS = (
    Row("input_layernorm.weight", ("attn_norm/scale",), "D"),
    *decoders.PROJECTIONS,
    Row("self_attn.q_norm.weight", ("attn/q_norm/scale",), "N,H"),
    Row("self_attn.k_norm.weight", ("attn/k_norm/scale",), "K,H"),
)

FAMILY = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    heads={"CohereModel": "none"},
    choices=CHOICES,
    defaults=DEFAULTS | {"use_qk_norm": False, "rope_theta": 500000.0},
    only=ONLY,
    ignored=IGNORED,
    quirks=(*QUIRKS, one_of("qk_norm", "use_qk_norm", {False: "none", True: "each"})),
    layer_rows=LAYER_ROWS,
    **SHARED,
)
