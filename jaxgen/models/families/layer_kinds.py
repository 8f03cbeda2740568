"""Layers of several kinds, as families say them: windows, ropes of their own, no ropes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.config_groups import Reach, Rope
from jaxgen.errors import CheckpointError
from jaxgen.models.families.family import MAX_LAYERS, Quirk
from jaxgen.models.families.quirks import LAYER_TYPES
from jaxgen.models.families.ropes import ROPE_KEYS, ignored_rope, rope_fields, rope_settings

Theirs = Mapping[str, Any]


def layer_types(
    default: Callable[[Theirs], list[str]],
    extra: tuple[str, ...] = (),
    unturned: Callable[[Theirs], bool] = lambda theirs: False,
    half: tuple[str, int] | None = None,
) -> Quirk:
    """Return the quirk of layers with and without a window.

    default: their kinds where config.json does not list layer_types; extra: keys it looks at.
    unturned: whether layers without a window have no rotation. half: a key, half of which and so
    many tokens more are the window, unless sliding_window tells that half; None: the latter is it.
    """

    def read(theirs: Theirs) -> dict[str, Any]:
        kinds = named_kinds(theirs, default)
        fields: dict[str, Any] = {"pattern": shortest(kinds), "window": None}
        if "local" in kinds:
            fields["window"] = theirs["sliding_window"] if half is None else _half(theirs, *half)
        if "global" in kinds and unturned(theirs):
            fields["kinds.global.positions"] = "none"
        return fields

    def write(config: ModelConfig) -> dict[str, Any]:
        names = {ours: name for name, ours in LAYER_TYPES.items()}
        types = [names.get(kind, kind) for kind in config.pattern]
        turns = all(config.rope_of(kind) is not None for kind in config.pattern)
        if half is not None:
            there = {} if config.window is None else {half[0]: 2 * (config.window - half[1])}
            return {"layer_types": types, **there}
        fields: dict[str, Any] = {"layer_types": types, "sliding_window": config.window}
        if config.window is None and not (turns and "sliding_window_pattern" in extra):
            fields["sliding_window"] = 4096
        if "use_sliding_window" in extra:
            fields |= {"use_sliding_window": config.window is not None, "max_window_layers": 0}
        return fields

    def odd(theirs: Theirs) -> list[str]:
        value = None if half is None else theirs[half[0]]
        if half is None or theirs.get("sliding_window") is not None or type(value) is not int:
            return []
        problem = f"{half[0]}={value} (odd: {value // 2} tokens on each side)"
        return [problem] if value % 2 else []

    keys = ("layer_types", "sliding_window", *extra)
    return Quirk(keys if half is None else (*keys, half[0]), read, write, odd)


def _half(theirs: Theirs, key: str, more: int) -> int:
    told = theirs.get("sliding_window")
    key, share = (key, 2) if told is None else ("sliding_window", 1)
    if type(theirs[key]) is not int or theirs[key] < 0:
        raise CheckpointError(f"{key}={theirs[key]!r:.60} is no number of tokens")
    return theirs[key] // share + more


def turned(theirs: Theirs) -> list[int]:
    """Return of each layer whether it turns, 1 or 0; all but every nth where they are not named."""
    layers, nth = depth(theirs), theirs["no_rope_layer_interval"]
    found = theirs.get("no_rope_layers") or None  # Llama 4's files name none
    if found is None and type(nth) is int and nth > 0:
        found = [int((layer + 1) % nth != 0) for layer in range(layers)]
    if not isinstance(found, list) or len(found) < layers or any(x not in (0, 1) for x in found):
        raise CheckpointError(
            f"no_rope_layers={found!r:.60} has not 1 (the layer turns) or 0 for each of {layers} "
            f"layers"
        )
    return found[:layers]


def kinds_of(layers: Iterable[tuple[Reach, Any, bool]]) -> dict[str, Any]:
    """Return pattern and kinds of layers: the reach of each, whether it turns, and is dense."""
    names = {"all": "global", "window": "local", "chunk": "chunk"}
    named, fields = [], {}
    for reach, turns, dense in layers:
        name = names[reach] + ("" if turns else "_nope") + ("_dense" if dense else "")
        named.append(name)
        kind: dict[str, Any] = {} if reach == "all" else {"reach": reach}
        kind |= ({} if turns else {"positions": "none"}) | ({"feed": "dense"} if dense else {})
        if name not in ("global", "local"):
            fields[f"kinds.{name}"] = kind
    return {**fields, "pattern": shortest(named)}


def _write_turned(config: ModelConfig, types: Mapping[str, str]) -> dict[str, Any]:
    """Return which layers turn, and their types, by the names of reaches."""
    return {
        "layer_types": [types.get(config.reach(kind), kind) for kind in config.pattern],
        "no_rope_layers": [int(config.rope_of(kind) is not None) for kind in config.pattern],
    }


def _read_turns(theirs: Theirs) -> dict[str, Any]:
    turns, on = turned(theirs), theirs["use_sliding_window"]
    windows = on and theirs["sliding_window"] is not None
    kinds = named_kinds(theirs, lambda theirs: _types(theirs, lambda i: windows and not turns[i]))
    reaches: list[Reach] = ["window" if kind == "local" else "all" for kind in kinds]
    fields = kinds_of((reach, turn, False) for reach, turn in zip(reaches, turns, strict=True))
    return fields | {"window": theirs["sliding_window"] if "local" in kinds else None}


def _write_turns(config: ModelConfig) -> dict[str, Any]:
    types = {"all": "full_attention", "window": "sliding_attention"}
    window = {"sliding_window": config.window, "use_sliding_window": config.window is not None}
    return _write_turned(config, types) | window


# SmolLM3: layers that don't turn.
_TURN_KEYS = ("no_rope_layers", "no_rope_layer_interval", "layer_types")
TURNS = Quirk((*_TURN_KEYS, "sliding_window", "use_sliding_window"), _read_turns, _write_turns)

_CHUNKS: dict[str, Reach] = {"full_attention": "all", "chunked_attention": "chunk"}


def _read_chunks(theirs: Theirs) -> dict[str, Any]:
    turns, size = turned(theirs), theirs["attention_chunk_size"]
    types = theirs.get("layer_types")
    if types is None:
        chunked = size is not None
        types = [["full_attention", "chunked_attention"][bool(turn and chunked)] for turn in turns]
    if not isinstance(types, list) or len(types) != len(turns) or not {*types} <= _CHUNKS.keys():
        raise CheckpointError(
            f"layer_types={types!r:.60} has not full_attention or chunked_attention for each of "
            f"{len(turns)} layers"
        )
    sparse, every = theirs["moe_layers"], theirs["interleave_moe_layer_step"]
    if sparse is None and type(every) is int and every > 0:
        sparse = range(every - 1, len(turns), every)
    if not isinstance(sparse, list | range):
        raise CheckpointError(f"moe_layers={sparse!r:.60} is no list of layers with experts")
    dense = [layer not in sparse for layer in range(len(turns))]
    reaches: list[Reach] = [_CHUNKS[name] for name in types]
    chunks = {"window": size if "chunked_attention" in types else None}
    return kinds_of(zip(reaches, turns, dense, strict=True)) | chunks


def _write_chunks(config: ModelConfig) -> dict[str, Any]:
    sparse = [i for i, kind in enumerate(config.pattern) if config.experts.are_in(config, kind)]
    told = _write_turned(config, {ours: name for name, ours in _CHUNKS.items()})
    return told | {"attention_chunk_size": config.window, "moe_layers": sparse}


# Llama 4: layers that turn see a chunk of the text; some layers have no experts.
_CHUNK_KEYS = ("attention_chunk_size", "moe_layers", "interleave_moe_layer_step")
CHUNKS = Quirk((*_TURN_KEYS, *_CHUNK_KEYS), _read_chunks, _write_chunks)


def _read_growth(theirs: Theirs) -> dict[str, Any]:
    if not theirs["attn_temperature_tuning"] or all(turned(theirs)):
        return {}
    told = {"growth": theirs["attn_scale"], "growth_span": theirs["floor_scale"]}
    told |= {"growth_first": 1, "growth_in": "unturned"}
    return {f"scores.{name}": value for name, value in told.items()}


def _write_growth(config: ModelConfig) -> dict[str, Any]:
    own = config.scores
    told = {"attn_scale": own.growth, "floor_scale": own.growth_span}
    return {"attn_temperature_tuning": own.growth is not None} | (told if own.growth else {})


# Layers that don't turn have queries that grow with their position.
_GROWTH_KEYS = ("attn_temperature_tuning", "attn_scale", "floor_scale")
CHUNK_GROWTH = Quirk(_GROWTH_KEYS, _read_growth, _write_growth)


def named_kinds(theirs: Theirs, default: Callable[[Theirs], list[str]]) -> list[str]:
    """Return whether each layer is local or global, as layer_types says, or else the default."""
    layers = depth(theirs)
    types = theirs.get("layer_types") or default(theirs)
    if not isinstance(types, list) or len(types) != layers:
        raise CheckpointError(f"layer_types does not name one kind for each of {layers} layers")
    if unknown := [name for name in types if not isinstance(name, str) or name not in LAYER_TYPES]:
        known = ", ".join(LAYER_TYPES)
        raise CheckpointError(f"layer_types: {unknown[0]!r:.60} is not known; known are {known}")
    return [LAYER_TYPES[name] for name in types]


def shortest(kinds: list[str]) -> tuple[str, ...]:
    """Return the shortest pattern that repeats to `kinds`."""
    lengths = range(1, len(kinds) + 1)
    length = next(n for n in lengths if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    return tuple(kinds[:length])


def _types(theirs: Theirs, local: Callable[[int], bool]) -> list[str]:
    layers = range(depth(theirs))
    return ["sliding_attention" if local(i) else "full_attention" for i in layers]


def depth(theirs: Theirs) -> int:
    """Return the number of layers; CheckpointError if it is none."""
    count = theirs["num_hidden_layers"]
    if type(count) is not int or count < 1:
        raise CheckpointError(f"num_hidden_layers={count!r:.60} is no number of layers")
    return count


def every_nth(theirs: Theirs, key: str = "sliding_window_pattern", ahead: int = 1) -> list[str]:
    """Return the kinds of layers of which all but every nth have a window.

    key: where n is told. ahead: 0 if the first layer has none, 1 if the nth is the first such.
    """
    period = theirs[key]
    if type(period) is not int or period < 1:
        raise CheckpointError(f"{key}={period!r:.60} is no number of layers")
    return _types(theirs, lambda layer: (layer + ahead) % period != 0)


def all_full(theirs: Theirs) -> list[str]:
    """Return the kinds of layers that have no window."""
    return _types(theirs, lambda layer: False)


def three_of_four(theirs: Theirs) -> list[str]:
    """Return the kinds of layers of which all but every fourth have a window."""
    return _types(theirs, lambda layer: (layer + 1) % 4 != 0)


def _last_layers(theirs: Theirs) -> list[str]:
    on = theirs["use_sliding_window"] and theirs["sliding_window"] is not None
    first = theirs["max_window_layers"]
    if type(first) is not int:
        raise CheckpointError(f"max_window_layers={first!r:.60} is no number of layers")
    return _types(theirs, lambda layer: bool(on) and layer >= first)


def _all_layers(theirs: Theirs) -> list[str]:
    return _types(theirs, lambda layer: theirs["sliding_window"] is not None)


def _write_one_window(config: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": config.window}


# Mistral: every layer, or none.
ONE_WINDOW = Quirk(("sliding_window",), layer_types(_all_layers).read, _write_one_window)
# Qwen: the layers after the first max_window_layers. Gemma: all but every nth.
LAST_WINDOWS = layer_types(_last_layers, ("use_sliding_window", "max_window_layers"))
MOST_WINDOWS = layer_types(every_nth, ("sliding_window_pattern",))


def local_rope(config: ModelConfig) -> Rope:
    """Return the rope of the first kind of layers with a window; without such that of all."""
    ropes = (config.rope_of(kind) for kind in config.pattern if config.reach(kind) == "window")
    return next(ropes, None) or config.rope


def two_ropes(
    default: Callable[[Theirs], list[str]],
    *,
    key: str | None,
    theta: float,
    other: str = "rope_theta",
) -> Quirk:
    """Return the quirk of layers with a window that have a rope of their own, not stretched.

    default: as of `layer_types`. key: where their base is told; None: it is theta, unless ropes are
    told by kinds of layers. other: where that of the other layers is told.
    """

    def read(theirs: Theirs) -> dict[str, Any]:
        theirs = {**theirs, "rope_theta": theirs[other]}
        nested = theirs.get("rope_parameters")
        base = {**theirs, "rope_theta": theta if key is None else theirs[key]}
        if nested is None:
            everywhere = rope_fields(theirs.get("rope_scaling"), theirs, partial=False)
            local = rope_fields(None, base, partial=False)
        elif isinstance(nested, dict) and set(nested) <= set(LAYER_TYPES):
            everywhere = rope_fields(nested.get("full_attention"), theirs, partial=False)
            local = rope_fields(nested.get("sliding_attention"), base, partial=False)
        else:
            raise CheckpointError(f"rope_parameters={nested!r:.60} has not one part a layer kind")
        fields: dict[str, Any] = {f"rope.{name}": value for name, value in everywhere.items()}
        has_local = "local" in named_kinds(theirs, default) and local != everywhere
        return {**fields, "kinds.local.rope": local} if has_local else fields

    def write(config: ModelConfig) -> dict[str, Any]:
        local = local_rope(config)
        everywhere = rope_settings(config.rope)
        everywhere[other] = everywhere.pop("rope_theta")
        if key is not None and local.scaling.kind == "none":
            return {**everywhere, key: local.theta}
        if key is None and local == Rope(theta=theta):
            return everywhere
        told = {}
        for name, rope in (("full_attention", config.rope), ("sliding_attention", local)):
            scaling = rope_settings(rope)["rope_scaling"] or {"rope_type": "default"}
            told[name] = {"rope_theta": rope.theta, **scaling}
        return {"rope_parameters": told} | ({} if key is None else {key: theta})

    keys = (*ROPE_KEYS[1:], other) if key is None else (*ROPE_KEYS[1:], other, key)
    return Quirk(keys, read, write, ignored_rope)


# Gemma 3: local layers have a base of their own.
TWO_ROPES = two_ropes(every_nth, key="rope_local_base_freq", theta=10000.0)


def _read_groups(theirs: Theirs) -> dict[str, Any]:
    layers, (groups, inner) = depth(theirs), (theirs[key] for key in _GROUP_KEYS)
    told = f"num_hidden_groups={groups!r:.20} and inner_group_num={inner!r:.20}"
    if any(type(number) is not int or number < 1 for number in (groups, inner)):
        raise CheckpointError(f"{told} are no numbers of groups and of their layers")
    if layers % groups or layers * inner > MAX_LAYERS:
        raise CheckpointError(
            f"{told} with num_hidden_layers={layers}: known are groups that divide the layers, "
            f"and at most {MAX_LAYERS} layers in all"
        )
    sets = "shared" if groups == 1 else groups
    return {"layers": layers * inner, "pattern": ("global",) * inner, "layer_weights": sets}


def _write_groups(config: ModelConfig) -> dict[str, Any]:
    inner, sets = len(config.pattern), config.weight_sets or config.layers
    return {"num_hidden_layers": config.layers // inner} | dict(
        zip(_GROUP_KEYS, (sets, inner), strict=True)
    )


# ALBERT: groups of layers that share their weights with the next layers.
_GROUP_KEYS = ("num_hidden_groups", "inner_group_num")
SHARED_GROUPS = Quirk(("num_hidden_layers", *_GROUP_KEYS), _read_groups, _write_groups)
