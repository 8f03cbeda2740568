"""Keys of GGUF files by those of config.json, and what llama.cpp takes for those that are absent.

Sources: src/llama-model.cpp and src/models of llama.cpp, which say what keys a model needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.models.families.family import MAX_LAYERS

Json = dict[str, Any]
# Fields of a ModelConfig whose GGUF key every architecture calls alike, after its own name.
SIZES = {
    "context": "context_length",
    "layers": "block_count",
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "experts.number": "expert_count",
    "experts.active": "expert_used_count",
    "experts.d_ff": "expert_feed_forward_length",
    "experts.shared": "expert_shared_feed_forward_length",
}
EPSILONS = {
    "layer": "attention.layer_norm_epsilon",
    "rms": "attention.layer_norm_rms_epsilon",
    "rms_offset": "attention.layer_norm_rms_epsilon",
}
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
LAYER_TYPES = ("full_attention", "sliding_attention")
# Keys that change no result, or that are read where they matter.
HARMLESS = frozenset(
    """
    vocab_size attention.value_length pooling_type rope.dimension_count rope.scaling.type
    rope.scaling.factor rope.scaling.original_context_length rope.scaling.attn_factor
    rope.scaling.yarn_attn_factor rope.scaling.finetuned rope.scaling.yarn_beta_fast
    rope.scaling.yarn_beta_slow rope.scale_linear tensor_data_layout
    attention.layer_norm_epsilon attention.layer_norm_rms_epsilon
    decoder_start_token_id rope.dimension_sections feed_forward_length
    """.split()
)


def positive(values: Json, key: str, default: float | None = None) -> float:
    """Return a number of a mapping; ValueError if it is none above 0."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key}={value!r:.40} is no number above 0")
    return float(value)


def same_as(key: str) -> Callable[[Json], Any]:
    """Return the value of another key."""
    return lambda meta: meta.get(key)


def divided(key: str, by: str) -> Callable[[Json], int | None]:
    """Return the value of a key divided by that of another; None if one is no number above 0."""

    def divide(meta: Json) -> int | None:
        many, few = meta.get(key), meta.get(by)
        return many // few if type(many) is int and type(few) is int and few > 0 else None

    return divide


def one_by_root(key: str) -> Callable[[Json], float | None]:
    """Return 1 / sqrt(value of a key); None if that is no number above 0."""

    def scale(meta: Json) -> float | None:
        width = meta.get(key)
        if not isinstance(width, int) or width <= 0:
            return None
        return float(str(np.float32(width**-0.5)))  # as a file would say it

    return scale


# What llama.cpp takes for a key that a file lacks: a value, or what follows from the other keys. A
# key that is neither here nor among the `absent` of its architecture is required.
ABSENT: Mapping[str, Any] = {
    "attention.head_count_kv": same_as("attention.head_count"),
    "attention.key_length": divided("embedding_length", "attention.head_count"),
    "attention.value_length": divided("embedding_length", "attention.head_count"),
    "rope.freq_base": 10000.0,
}
# Keys with one known value: what llama.cpp takes where they are absent, and what is known.
ONLY: Mapping[str, tuple[Any, Any]] = {"attention.causal": (True, True)}


class Rule(NamedTuple):
    """Keys of which several, or none, are one of config.json.

    read: from a file's keys, absent ones filled in, and the names of its tensors, to config.json.
    write: the way back.
    """

    keys: tuple[str, ...]
    read: Callable[[Json, Collection[str]], Json]
    write: Callable[[Json, ModelConfig], Json]


def _read_windows(meta: Json, tensors: Collection[str]) -> Json:
    layers, window, pattern = meta["block_count"], meta.get(WINDOW), meta[PATTERN]
    if type(layers) is not int or not 0 < layers <= MAX_LAYERS:
        return {}  # which is refused as what it is
    if not window:
        pattern = [False] * layers
    elif isinstance(pattern, bool):
        pattern = [pattern] * layers
    elif type(pattern) is int and pattern >= 0:
        pattern = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers or not {*pattern} <= {False, True}:
        raise ValueError(f"{PATTERN}={pattern!r:.40} has not a truth value for each layer")
    return {"layer_types": [LAYER_TYPES[one] for one in pattern], "sliding_window": window or None}


def _write_windows(settings: Json, config: ModelConfig) -> Json:
    local = [name == LAYER_TYPES[True] for name in settings["layer_types"]]
    window = settings["sliding_window"] if any(local) else 0
    return {WINDOW: np.uint32(window or 0), PATTERN: np.asarray(local)}


# Layers with and without a window.
WINDOWS = Rule((WINDOW, PATTERN), _read_windows, _write_windows)


def _read_both_sides(meta: Json, tensors: Collection[str]) -> Json:
    pattern = meta[PATTERN]
    if type(pattern) is int and type(meta["block_count"]) is int and pattern > 0:
        count = min(max(meta["block_count"], 0), MAX_LAYERS)
        meta = {**meta, PATTERN: [layer % pattern != 0 for layer in range(count)]}
    fields = _read_windows(meta, tensors)
    window = fields.pop("sliding_window", None)
    return fields | ({"local_attention": window} if window else {})


def _write_both_sides(settings: Json, config: ModelConfig) -> Json:
    meta = _write_windows({"sliding_window": settings.get("local_attention"), **settings}, config)
    local = meta[PATTERN]
    nth = next((n for n in range(1, len(local) + 1) if all(
        one == (layer % n != 0) for layer, one in enumerate(local))), None)  # fmt: skip
    return meta if nth is None else meta | {PATTERN: np.uint32(nth)}


# Windows of encoders, as wide as both sides together; the first of each few layers has none.
BOTH_SIDES = Rule((WINDOW, PATTERN), _read_both_sides, _write_both_sides)
HIDDEN_ACT = Rule(
    ("hidden_act",),
    lambda meta, tensors: {"hidden_activation": meta["hidden_act"]},
    lambda settings, config: {"hidden_act": settings["hidden_activation"]},
)


def query_scalar(layers: int, width: int) -> Rule:
    """Return the rule of scores divided by the root of head_dim, but of the 27B models.

    layers: by which llama.cpp knows these; width: what it divides by the root of there.
    """

    def read(meta: Json, tensors: Collection[str]) -> Json:
        known = meta["block_count"] == layers
        return {"query_pre_attn_scalar": width if known else meta["attention.key_length"]}

    return Rule((), read, lambda settings, config: {})


# StableLM's feed-forward is beside the attention where a layer has one norm.
ONE_NORM = Rule(
    ("use_parallel_residual",),
    lambda meta, tensors: {"use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors},
    lambda settings, config: {"use_parallel_residual": settings["use_parallel_residual"]},
)


def _read_derived(meta: Json, tensors: Collection[str]) -> Json:
    for key, other, times in (
        ("feed_forward_length", "embedding_length", 4),
        ("attention.head_count_kv", "attention.head_count", 1),
    ):
        if type(meta[other]) is int and meta[key] != times * meta[other]:
            raise ValueError(f"{key}={meta[key]!r:.40} is not known here; known is {times} {other}")
    return {}


# Sizes that config.json does not tell: a feed-forward of four times the width, no shared heads.
DERIVED = Rule(
    ("feed_forward_length", "attention.head_count_kv"),
    _read_derived,
    lambda settings, config: {"feed_forward_length": np.uint32(config.F)},
)


def _read_falcon(meta: Json, tensors: Collection[str]) -> Json:
    heads, two = meta["attention.head_count_kv"], "blk.0.attn_norm_2.weight" in tensors
    return {
        "num_kv_heads": heads,
        "multi_query": heads == 1,
        "new_decoder_architecture": two or heads not in (1, meta["attention.head_count"]),
        "num_ln_in_parallel_attn": 1 + two,
    }


FALCON = Rule(
    ("attention.head_count_kv",),
    _read_falcon,
    lambda settings, config: {"attention.head_count_kv": np.uint32(config.K)},
)


def _read_exaone(meta: Json, tensors: Collection[str]) -> Json:
    # llama.cpp has windows in the model of 32 B alone, and knows it by its depth.
    window = meta[WINDOW] if meta["block_count"] == 64 else 0
    return _read_windows({**meta, WINDOW: window}, tensors)


EXAONE = Rule((WINDOW, PATTERN), _read_exaone, _write_windows)


def _read_depth(meta: Json, tensors: Collection[str]) -> Json:
    many, ahead = meta["block_count"], meta["nextn_predict_layers"]
    known = type(many) is int and type(ahead) is int
    return {"num_hidden_layers": many - ahead if known else many}


# Layers at the end predict tokens after the next, and are left out.
DEPTH = Rule(
    ("block_count", "nextn_predict_layers"),
    _read_depth,
    lambda settings, config: {"block_count": np.uint32(config.layers)},
)


# Of 128 experts' model llama.cpp knows that it normalises no queries.
LLAMA4 = Rule(
    ("interleave_moe_layer_step",),
    lambda meta, tensors: {
        "interleave_moe_layer_step": meta["interleave_moe_layer_step"],
        "use_qk_norm": meta["expert_count"] != 128,
    },
    lambda settings, config: {
        "interleave_moe_layer_step": np.uint32(min(settings["moe_layers"], default=0) + 1)
    },
)


def _read_latent(meta: Json, tensors: Collection[str]) -> Json:
    part = "_mla" if meta["attention.key_length_mla"] else ""  # which older files lack
    width, turned = meta[f"attention.key_length{part}"], meta["rope.dimension_count"]
    known = type(width) is int and type(turned) is int
    scale = meta["rope.scaling.yarn_log_multiplier"]
    scales = dict.fromkeys(("mscale", "mscale_all_dim"), float(str(np.float32(scale * 10))))
    return {
        "num_key_value_heads": meta["attention.head_count"],
        "qk_nope_head_dim": width - turned if known else width,
        "qk_rope_head_dim": turned,
        "v_head_dim": meta[f"attention.value_length{part}"],
        **({"rope_scaling": scales} if scale else {}),
    }


def _write_latent(settings: Json, config: ModelConfig) -> Json:
    latent = config.latent
    assert latent is not None
    meta: Json = {
        "attention.head_count_kv": 1,
        "attention.key_length": latent.kv_rank + latent.rope_width,
        "attention.value_length": latent.kv_rank,
        "attention.key_length_mla": latent.plain_width + latent.rope_width,
        "attention.value_length_mla": latent.value_width,
        "rope.dimension_count": latent.rope_width,
    }
    scale = (settings.get("rope_scaling") or {}).get("mscale_all_dim")
    more = {"rope.scaling.yarn_log_multiplier": np.float32(scale / 10)} if scale else {}
    return {key: np.uint32(value) for key, value in meta.items()} | more


LATENT = Rule(
    (
        *(f"attention.{part}_length{end}" for part in ("key", "value") for end in ("", "_mla")),
        *("attention.head_count_kv", "rope.dimension_count", "rope.scaling.yarn_log_multiplier"),
    ),
    _read_latent,
    _write_latent,
)


# T5's feed-forward is gated, and then no ReLU, where a layer has a gate.
T5_FEED = Rule(
    (),
    lambda meta, tensors: {
        "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in tensors else "relu"
    },
    lambda settings, config: {},
)


def _read_delta(meta: Json, tensors: Collection[str]) -> Json:
    inner, heads = meta["ssm.inner_size"], meta["ssm.time_step_rank"]
    if type(inner) is not int or type(heads) is not int or heads < 1 or inner % heads:
        raise ValueError(f"ssm.inner_size={inner!r:.40} is no multiple of ssm.time_step_rank")
    return {
        "linear_value_head_dim": inner // heads,
        "full_attention_interval": meta["full_attention_interval"],
    }


def _write_delta(settings: Json, config: ModelConfig) -> Json:
    linear = [kind == "linear_attention" for kind in settings["layer_types"]]
    nth = linear.index(False) + 1 if False in linear else len(linear) + 1
    inner = settings["linear_value_head_dim"] * settings["linear_num_value_heads"]
    return {"ssm.inner_size": np.uint32(inner), "full_attention_interval": np.uint32(nth)}


# Layers of the gated delta rule, all but every nth.
DELTA = Rule(("ssm.inner_size", "full_attention_interval"), _read_delta, _write_delta)


def _write_sections(settings: Json, config: ModelConfig) -> Json:
    pairs = config.rope.width(config.H) // 2
    sections = [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0]
    return {"rope.dimension_sections": np.asarray(sections, np.int32)}


# The pairs that turn with each position in an image; those of a text are one number three times.
IMAGE_ROPE = Rule((), lambda meta, tensors: {}, _write_sections)


def _read_sparsity(meta: Json, tensors: Collection[str]) -> Json:
    """Return the shares of the feed-forward that are cut, of their normal quantiles."""
    given = meta["activation_sparsity_scale"]
    many = given if isinstance(given, list) else [given]
    if not all(type(one) in (int, float) for one in many):
        raise ValueError(f"activation_sparsity_scale={given!r:.40} is no number for each layer")
    shares = [round(NormalDist().cdf(one), 6) for one in many]
    return {"activation_sparsity_pattern": shares if isinstance(given, list) else shares[0]}


SPARSITY = Rule(("activation_sparsity_scale",), _read_sparsity, lambda settings, config: {})
