"""Experts as families say them: tensors, routers, shared experts, dense layers before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.config_experts import Experts
from jaxgen.errors import CheckpointError
from jaxgen.models.families import decoders
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.quirks import Theirs, one_of
from jaxgen.models.families.rows import Row

# Noise in training, and keys that are read nowhere.
IGNORED = frozenset({"router_jitter_noise", "input_jitter_noise"})
# Layers of attention, whose feed-forward is told apart.
ATTENTION = tuple(row for row in decoders.LAYER_ROWS if not row.theirs.startswith("mlp."))
# The weights of a token's experts.
NORMALISE = one_of("experts.normalise", "norm_topk_prob", {True: "chosen", False: "all"})


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


# Experts of Qwen's, DeepSeek's and GLM's kin, which some files hold in one tensor of a layer.
ROWS = expert_rows("mlp", "gate_proj", "up_proj", "down_proj")
FUSED = (
    Row("mlp.experts.gate_up_proj", ("experts/gate", "experts/up"), "E,*F,D"),
    Row("mlp.experts.down_proj", ("experts/down",), "E,D,F"),
)
CHOICE_BIAS = Row("mlp.gate.e_score_correction_bias", ("experts/choice_bias",), "E")
SHARED_EXPERTS = shared_rows("mlp.shared_experts")
GATED_SHARED = (
    *shared_rows("mlp.shared_expert"),
    Row("mlp.shared_expert_gate.weight", ("experts/shared_gate",), "E,D"),
)


def _read_balance(theirs: Theirs) -> dict[str, Any]:
    on = theirs["output_router_logits"] is True
    weight = theirs["router_aux_loss_coef"] if on else 0.0
    return {"experts.balance": weight, "experts.balance_over": "model" if weight else "layer"}


def _write_balance(config: ModelConfig) -> dict[str, Any]:
    weight = config.experts.balance
    return {"output_router_logits": weight > 0, "router_aux_loss_coef": weight or 0.001}


BALANCE = Quirk(("output_router_logits", "router_aux_loss_coef"), _read_balance, _write_balance)
DEFAULTS = decoders.DEFAULTS | {"output_router_logits": False, "router_aux_loss_coef": 0.001}


# Qwen: experts in all layers or in none.
_QWEN = {
    "number": "num_experts",
    "active": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "shared": "shared_expert_intermediate_size",
}


def _read_sparse(theirs: Theirs) -> dict[str, Any]:
    dense, every = theirs["mlp_only_layers"] or [], theirs["decoder_sparse_step"]
    layers = range(theirs["num_hidden_layers"])
    sparse = [i for i in layers if i not in dense and (i + 1) % every == 0]
    if not theirs["num_experts"] or not sparse:
        return {}
    if len(sparse) < len(layers):
        raise CheckpointError(
            f"mlp_only_layers and decoder_sparse_step give experts to {len(sparse)} of "
            f"{len(layers)} layers; known are all or none"
        )
    fields = {f"experts.{ours}": theirs[key] for ours, key in _QWEN.items()}
    return fields | {"experts.shared_gate": "sigmoid", **NORMALISE.read(theirs)}


def _write_sparse(config: ModelConfig) -> dict[str, Any]:
    ours, none = config.experts, {"mlp_only_layers": [], "decoder_sparse_step": 1}
    if not ours.number:
        return none | {"mlp_only_layers": list(range(config.layers))}
    width = {"moe_intermediate_size": ours.width(config.F)}
    fields = {key: getattr(ours, name) for name, key in _QWEN.items()}
    return {**none, **fields, **width, **NORMALISE.write(config)}


SPARSE = Quirk(
    ("mlp_only_layers", "decoder_sparse_step", "norm_topk_prob", *_QWEN.values()),
    _read_sparse,
    _write_sparse,
)

# DeepSeek: how many experts, and where; absent where all layers are dense.
_DEEPSEEK = {
    "number": "n_routed_experts",
    "active": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "scale": "routed_scaling_factor",
    "first_dense": "first_k_dense_replace",
}
_KEYS = (*_DEEPSEEK.values(), "n_shared_experts", "n_group", "topk_group", "topk_method")


def behind_dense(
    read: Callable[[Theirs], dict[str, Any]], write: Callable[[Experts], dict[str, Any]]
) -> Quirk:
    """Return the quirk of experts behind the first dense layers, if there are layers behind them.

    read, write: of the router and its groups.
    """

    def of_theirs(theirs: Theirs) -> dict[str, Any]:
        dense, layers = theirs["first_k_dense_replace"], theirs["num_hidden_layers"]
        if type(dense) is not int or type(layers) is not int:
            raise CheckpointError(f"first_k_dense_replace={dense!r:.60} is no number of layers")
        if dense >= layers:
            return {}
        fields = {ours: theirs[key] for ours, key in _DEEPSEEK.items()}
        shared = (theirs["n_shared_experts"] or 0) * theirs["moe_intermediate_size"]
        fields |= {"shared": shared, **read(theirs)}
        return {f"experts.{name}": value for name, value in fields.items()}

    def of_ours(config: ModelConfig) -> dict[str, Any]:
        ours = config.experts
        if not ours.number:
            return {"first_k_dense_replace": config.layers}
        width = ours.width(config.F)
        fields = {key: getattr(ours, name) for name, key in _DEEPSEEK.items()}
        fields |= {"moe_intermediate_size": width, "n_shared_experts": ours.shared // width}
        return {**fields, **write(ours)}

    return Quirk((*_KEYS, "norm_topk_prob"), of_theirs, of_ours)


def _read_greedy(theirs: Theirs) -> dict[str, Any]:
    method = theirs["topk_method"]
    if method not in ("greedy", "group_limited_greedy"):
        raise CheckpointError(
            f"topk_method={method!r:.60} is not known here; known are 'greedy' and "
            f"'group_limited_greedy'"
        )
    # Its weights are never normalised, whatever norm_topk_prob says.
    fields: dict[str, Any] = {"normalise": "all"}
    if method == "greedy":
        return fields
    return fields | {"groups": theirs["n_group"], "active_groups": theirs["topk_group"]}


def _write_greedy(ours: Experts) -> dict[str, Any]:
    method = "greedy" if ours.groups == 1 else "group_limited_greedy"
    return {"n_group": ours.groups, "topk_group": ours.active_groups, "topk_method": method}


def _read_sigmoid(theirs: Theirs) -> dict[str, Any]:
    return {
        "router": "sigmoid",
        "choice_bias": "bias",
        "normalise": "chosen" if theirs["norm_topk_prob"] else "all",
        "groups": theirs["n_group"],
        "active_groups": theirs["topk_group"],
    }


def _write_sigmoid(ours: Experts) -> dict[str, Any]:
    groups = {"n_group": ours.groups, "topk_group": ours.active_groups}
    return groups | {"norm_topk_prob": ours.normalise == "chosen"}


# What code beside transformers' has other values for, by whatever is done here.
SIGMOID_ONLY: dict[str, tuple[Any, ...]] = {
    "scoring_func": ("sigmoid", None),
    "topk_method": ("noaux_tc", None),
    "moe_layer_freq": (1, None),
}
# DeepSeek-V2, and DeepSeek-V3 with GLM-4.5.
GREEDY = behind_dense(_read_greedy, _write_greedy)
SIGMOID = behind_dense(_read_sigmoid, _write_sigmoid)


_GEMMA4 = {"number": "num_experts", "active": "top_k_experts", "d_ff": "moe_intermediate_size"}


def _read_gemma4(theirs: Theirs) -> dict[str, Any]:
    if not theirs["enable_moe_block"]:
        return {}
    fields = {f"experts.{ours}": theirs[key] for ours, key in _GEMMA4.items()}
    return fields | {"experts.norms": "own", "experts.shared": theirs["intermediate_size"]}


def _write_gemma4(config: ModelConfig) -> dict[str, Any]:
    own, on = config.experts, config.experts.number > 0
    return {"enable_moe_block": on} | {
        k: getattr(own, n) if on else None for n, k in _GEMMA4.items()
    }


# Beside the dense feed-forward, whose width is that of the shared expert.
GEMMA4 = Quirk(("enable_moe_block", *_GEMMA4.values()), _read_gemma4, _write_gemma4)
