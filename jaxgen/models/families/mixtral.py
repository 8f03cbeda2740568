"""Mixtral (Jiang et al. 2024): Mistral with experts, and what families with experts share."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.models.families import llama
from jaxgen.models.families.family import Family, Quirk, Row
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.quirks import GATED, ROPE, TIED, Theirs, one_of

SIZES = llama.SIZES | {
    "experts.number": "num_local_experts",
    "experts.active": "num_experts_per_tok",
}
# The weights of a token's experts.
NORMALISE = one_of("experts.normalise", "norm_topk_prob", {True: "chosen", False: "all"})
DEFAULTS = llama.DEFAULTS | {"output_router_logits": False, "router_aux_loss_coef": 0.001}
# Noise in training, and keys that are read nowhere.
IGNORED = frozenset({"router_jitter_noise", "input_jitter_noise"})
ATTENTION = tuple(row for row in llama.LAYER_ROWS if not row.theirs.startswith("mlp."))


def _read_balance(theirs: Theirs) -> dict[str, Any]:
    on = theirs["output_router_logits"] is True
    weight = theirs["router_aux_loss_coef"] if on else 0.0
    return {"experts.balance": weight, "experts.balance_over": "model" if weight else "layer"}


def _write_balance(config: ModelConfig) -> dict[str, Any]:
    weight = config.experts.balance
    return {"output_router_logits": weight > 0, "router_aux_loss_coef": weight or 0.001}


BALANCE = Quirk(("output_router_logits", "router_aux_loss_coef"), _read_balance, _write_balance)


def expert_rows(home: str, gate: str, up: str, down: str, router: str = "gate") -> tuple[Row, ...]:
    """Return the rows of a router and of experts with a tensor each."""
    return (
        Row(f"{home}.{router}.weight", ("experts/router",), "E,D"),
        Row(f"{home}.experts.{{}}.{gate}.weight", ("experts/gate",), "F,D"),
        Row(f"{home}.experts.{{}}.{up}.weight", ("experts/up",), "F,D"),
        Row(f"{home}.experts.{{}}.{down}.weight", ("experts/down",), "D,F"),
    )


def shared_rows(home: str) -> tuple[Row, ...]:
    """Return the rows of the expert that all tokens have."""
    return (
        Row(f"{home}.gate_proj.weight", ("experts/shared/gate",), "F,D"),
        Row(f"{home}.up_proj.weight", ("experts/shared/up",), "F,D"),
        Row(f"{home}.down_proj.weight", ("experts/shared/down",), "D,F"),
    )


SHARED_FIELDS: dict[str, Any] = llama.SHARED | {"sizes": SIZES}

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    heads=llama.heads("Mixtral", *llama.HEADS),
    head_rows=llama.SCORE,
    choices=llama.CHOICES,
    defaults=DEFAULTS
    | {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None},
    aliases={"num_experts": "num_local_experts"},
    ignored=IGNORED,
    quirks=(TIED, GATED, ROPE, ONE_WINDOW, BALANCE),
    layer_rows=(*ATTENTION, *expert_rows("block_sparse_moe", "w1", "w3", "w2")),
    **SHARED_FIELDS,
)
