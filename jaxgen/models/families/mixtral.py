"""Mixtral (Jiang et al. 2024): Mistral with experts."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, mixtures
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.mixtures import BALANCE
from jaxgen.models.families.quirks import GATED, TIED
from jaxgen.models.families.ropes import ROPE

SIZES = decoders.SIZES | {
    "experts.number": "num_local_experts",
    "experts.active": "num_experts_per_tok",
}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}
# The names that files keep, whatever transformers calls these tensors since.
ROWS = (*mixtures.ATTENTION, *mixtures.expert_rows("block_sparse_moe", "w1", "w3", "w2"))

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    heads=decoders.heads("Mixtral", *decoders.HEADS),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=mixtures.DEFAULTS
    | {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None},
    aliases={"num_experts": "num_local_experts"},
    ignored=mixtures.IGNORED,
    quirks=(TIED, GATED, ROPE, ONE_WINDOW, BALANCE),
    layer_rows=ROWS,
    **SHARED,
)
