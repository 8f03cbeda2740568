"""Layers that share keys and values, and have sizes of their own, as Gemma 3n and 4 say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.config_groups import Rope
from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import Quirk
from jaxgen.models.families.layer_kinds import depth, local_rope, named_kinds, two_ropes
from jaxgen.models.families.quirks import LAYER_TYPES, Theirs
from jaxgen.models.families.ropes import (
    ROPE_KEYS,
    ignored_rope,
    proportional_rope,
    rope_fields,
    rope_settings,
)
from jaxgen.models.families.rows import Row

WINDOW = 512  # tokens; what a config without such layers is written with
_TYPES = {ours: theirs for theirs, ours in LAYER_TYPES.items()}


def _every(nth: int):
    def types(theirs: Theirs) -> list[str]:
        return [_TYPES["local" if (i + 1) % nth else "global"] for i in range(depth(theirs))]

    return types


def _by_layer(
    theirs: Theirs, types: Sequence[str], own: Sequence[dict[str, Any]], ropes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return pattern and kinds of layers that are local or global, with settings of their own.

    The last num_kv_shared_layers have the keys of the last layer before them that is as they are.
    """
    shared, layers = theirs["num_kv_shared_layers"], len(types)
    if type(shared) is not int or not 0 <= shared < layers:
        raise CheckpointError(f"num_kv_shared_layers={shared!r:.60} is no part of {layers} layers")
    kinds, pattern, givers = {}, [], {}
    for layer, (name, fields) in enumerate(zip(types, own, strict=True)):
        words, kind = [name], {key: value for key, value in fields.items() if value is not None}
        words += ["sparse"] * ("sparsity" in kind)
        if layer >= layers - shared:
            if name not in givers:
                raise CheckpointError(
                    f"num_kv_shared_layers={shared}: layer {layer} is {_TYPES[name]}, and no layer "
                    f"before those that share is"
                )
            kind = {**kind, "keys_of": givers[name], "values": "own"}
            words.append("shared")
        if name == "local":
            kind |= {"reach": "window"} | (
                {} if ropes["local"] is None else {"rope": ropes["local"]}
            )
        number, stem = 1, "_".join(words)
        full = stem
        while kinds.setdefault(full, kind) != kind:
            number += 1
            full = f"{stem}_{number}"
        if "keys_of" not in kind:
            givers[name] = full
        pattern.append(full)
    told = {name: kind for name, kind in kinds.items() if kind not in ({}, {"reach": "window"})}
    told |= {name: kind for name, kind in kinds.items() if kind and name != "local"}
    fields = {f"kinds.{name}": kind for name, kind in told.items()}
    window = theirs["sliding_window"] if "local" in types else None
    return {**fields, **ropes["all"], "pattern": tuple(pattern), "window": window}


def _write_layers(config: ModelConfig) -> dict[str, Any]:
    local = [config.reach(kind) == "window" for kind in config.pattern]
    return {
        "layer_types": [_TYPES["local" if one else "global"] for one in local],
        "sliding_window": config.window or WINDOW,
        "num_kv_shared_layers": sum(map(config.shares_keys, config.pattern)),
    }


def _each(theirs: Theirs, key: str, kinds: tuple[type, ...]) -> list[Any]:
    """Return a setting of each layer, of which config.json may tell one for all."""
    value, layers = theirs[key], depth(theirs)
    values = value if isinstance(value, list) else [value] * layers
    if len(values) != layers or not all(type(one) in kinds for one in values):
        raise CheckpointError(f"{key}={value!r:.60} is not a number for each of {layers} layers")
    return values


# Gemma 3n.
_LEGACY = two_ropes(_every(5), key="rope_local_base_freq", theta=10000.0)


def _read_3n(theirs: Theirs) -> dict[str, Any]:
    layers = depth(theirs)
    if theirs["activation_sparsity_pattern"] is None:
        sparse = 10 if layers > 10 else 0
        theirs = {
            **theirs,
            "activation_sparsity_pattern": [0.95] * sparse + [0.0] * (layers - sparse),
        }
    cut = _each(theirs, "activation_sparsity_pattern", (int, float))
    widths = _each(theirs, "intermediate_size", (int,))
    usual = max(widths, key=widths.count)
    own = [
        {"sparsity": share or None, "d_ff": None if width == usual else width}
        for share, width in zip(cut, widths, strict=True)
    ]
    everywhere = _LEGACY.read(theirs)
    ropes = {"local": everywhere.pop("kinds.local.rope", None), "all": everywhere}
    types = named_kinds(theirs, _every(5))
    return {"d_ff": usual, **_by_layer(theirs, types, own, ropes)}


def _write_3n(config: ModelConfig) -> dict[str, Any]:
    kinds = [config.kinds.get(kind) for kind in config.pattern]
    return {
        **_write_layers(config),
        **_LEGACY.write(config),
        "intermediate_size": [config.of_kind(kind).F for kind in config.pattern],
        "activation_sparsity_pattern": [0.0 if kind is None else kind.sparsity for kind in kinds],
    }


_LAYER_KEYS = ("layer_types", "sliding_window", "num_kv_shared_layers")
LAYERS_3N = Quirk(
    (*_LAYER_KEYS, *_LEGACY.keys, "intermediate_size", "activation_sparsity_pattern"),
    _read_3n,
    _write_3n,
    ignored_rope,
)


# Gemma 4.
_ROPES_4 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}
_HEADS = {"head_dim": "head_dim", "kv_heads": "num_key_value_heads"}


def _rope_4(given: Any, theirs: Theirs) -> dict[str, Any]:
    if isinstance(given, dict) and given.get("rope_type") == "proportional":
        return proportional_rope(given)
    return rope_fields(given, {**theirs, "rope_theta": 10_000.0}, partial=False)


def _heads_4(theirs: Theirs, types: Sequence[str]) -> list[dict[str, Any]]:
    """Return sizes of heads of each layer, where they are its own."""
    told = theirs.get("per_layer_config")
    if told is None:
        one = {"head_dim": theirs["global_head_dim"]}
        if theirs["attention_k_eq_v"] and theirs["num_global_key_value_heads"] is not None:
            one["num_key_value_heads"] = theirs["num_global_key_value_heads"]
        told = {str(layer): one for layer, name in enumerate(types) if name == "global"}
    known = set(_HEADS.values())
    if not isinstance(told, dict) or not all(
        name.isdecimal() and isinstance(one, dict) and one.keys() <= known
        for name, one in told.items()
    ):
        raise CheckpointError(
            f"per_layer_config={told!r:.60} is not known here; known are {' and '.join(known)}"
        )
    # Numbers of layers may be filled up with zeros.
    by_number = {int(name): one for name, one in told.items()}
    each = [by_number.get(layer, {}) for layer in range(len(types))]
    found = [{ours: one.get(key) for ours, key in _HEADS.items()} for one in each]
    base = {ours: theirs[key] for ours, key in _HEADS.items()}
    return [{k: None if v == base[k] else v for k, v in one.items()} for one in found]


def _read_4(theirs: Theirs) -> dict[str, Any]:
    types = named_kinds(theirs, _every(6))
    types[-1] = "global"  # as transformers has it, whatever is told
    nested = theirs.get("rope_parameters") or _ROPES_4
    if not isinstance(nested, dict) or not nested.keys() <= LAYER_TYPES.keys():
        raise CheckpointError(f"rope_parameters={nested!r:.60} has not one part a layer kind")
    each = {name: _rope_4(nested.get(theirs_), theirs) for name, theirs_ in _TYPES.items()}
    local = None if each["local"] == each["global"] else each["local"]
    ropes = {"local": local, "all": {f"rope.{k}": v for k, v in each["global"].items()}}
    wide = theirs["use_double_wide_mlp"] and theirs["num_kv_shared_layers"]
    begin = len(types) - (theirs["num_kv_shared_layers"] if wide else 0)
    own = [
        {
            **heads,
            "values": "keys" if theirs["attention_k_eq_v"] and name == "global" else None,
            "d_ff": 2 * theirs["intermediate_size"] if layer >= begin else None,
        }
        for layer, (name, heads) in enumerate(zip(types, _heads_4(theirs, types), strict=True))
    ]
    return _by_layer(theirs, types, own, ropes)


def _nested(rope: Rope) -> dict[str, Any]:
    if rope.pairs != "halves_of_head":
        scaling = rope_settings(rope)["rope_scaling"] or {"rope_type": "default"}
        return {"rope_theta": rope.theta, **scaling}
    told = {"rope_type": "proportional", "partial_rotary_factor": rope.share}
    return {**told, "rope_theta": rope.theta, "factor": rope.scaling.factor}


def _write_4(config: ModelConfig) -> dict[str, Any]:
    shared = [config.of_kind(kind) for kind in config.pattern if config.shares_keys(kind)]
    values = [kind.values for kind in config.kinds.values()]
    ropes = {"full_attention": config.rope, "sliding_attention": local_rope(config)}
    sizes = {}
    for layer, name in enumerate(config.pattern):
        own = config.of_kind(name)
        one = {"head_dim": own.H, "num_key_value_heads": own.K}
        if one != {"head_dim": config.H, "num_key_value_heads": config.K}:
            sizes[str(layer)] = one
    return {
        **_write_layers(config),
        "rope_parameters": {name: _nested(rope) for name, rope in ropes.items()},
        "attention_k_eq_v": "keys" in values,
        "use_double_wide_mlp": any(own.F != config.F for own in shared),
        "per_layer_config": sizes,
    }


LAYERS_4 = Quirk(
    (
        *(*_LAYER_KEYS, *ROPE_KEYS, "attention_k_eq_v", "use_double_wide_mlp"),
        *("per_layer_config", "global_head_dim", "num_global_key_value_heads"),
    ),
    _read_4,
    _write_4,
    ignored_rope,
)


# Both: vectors of tokens for each layer.
def _read_vectors(theirs: Theirs) -> dict[str, Any]:
    width = theirs["hidden_size_per_layer_input"]
    names = {"per_layer.width": width, "per_layer.vocab_size": theirs["vocab_size_per_layer_input"]}
    return names if width else {}


def _write_vectors(config: ModelConfig) -> dict[str, Any]:
    own = config.per_layer
    return {
        "hidden_size_per_layer_input": own.width if own else 0,
        "vocab_size_per_layer_input": (own and own.vocab_size) or config.V,
    }


VECTORS = Quirk(
    ("hidden_size_per_layer_input", "vocab_size_per_layer_input"), _read_vectors, _write_vectors
)
VECTOR_ROWS = (
    Row("model.embed_tokens_per_layer.weight", ("per_layer/tokens",), "V,Z"),
    Row("model.per_layer_model_projection.weight", ("per_layer/project",), "Z,D"),
    Row("model.per_layer_projection_norm.weight", ("per_layer/norm/scale",), "Z"),
)
VECTOR_LAYER_ROWS = (
    Row("per_layer_input_gate.weight", ("per_layer/gate",), "Z,D"),
    Row("per_layer_projection.weight", ("per_layer/project",), "D,Z"),
    Row("post_per_layer_input_norm.weight", ("per_layer/norm/scale",), "D"),
)
# Files hold them for layers that have those of another one, too.
UNREAD = tuple(f"model.layers.*.self_attn.{x}.weight" for x in ("k_proj", "v_proj", "k_norm"))
