"""Architectures of GGUF files as data: their keys by config.json's, their tensors by our paths.

Sources: src/llama-model.cpp and src/models of llama.cpp, which say what keys a model needs, and
convert_hf_to_gguf.py, which says what it writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.models.families import FAMILIES
from jaxgen.models.families.family import MAX_LAYERS, Family
from jaxgen.models.families.rows import Row
from jaxgen.pretrained import gguf_rows as rows

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
    rope.scaling.finetuned rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    rope.scale_linear tensor_data_layout attention.layer_norm_epsilon
    attention.layer_norm_rms_epsilon
    """.split()
)


def positive(values: Json, key: str, default: float | None = None) -> float:
    """Return a number of a mapping; ValueError if it is none above 0."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key}={value!r:.40} is no number above 0")
    return value


def same_as(key: str) -> Callable[[Json], Any]:
    """Return the value of another key."""
    return lambda own: own.get(key)


def divided(key: str, by: str) -> Callable[[Json], int | None]:
    """Return the value of a key divided by that of another; None if one is no number above 0."""

    def divide(own: Json) -> int | None:
        many, few = own.get(key), own.get(by)
        return many // few if type(many) is int and type(few) is int and few > 0 else None

    return divide


def one_by_root(key: str) -> Callable[[Json], float | None]:
    """Return 1 / sqrt(value of a key); None if that is no number above 0."""

    def scale(own: Json) -> float | None:
        width = own.get(key)
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


def _read_windows(own: Json, tensors: Collection[str]) -> Json:
    layers, window, pattern = own["block_count"], own.get(WINDOW), own[PATTERN]
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


def query_scalar(layers: int, width: int) -> Rule:
    """Return the rule of scores divided by the root of head_dim, but of the 27B models.

    layers: by which llama.cpp knows these; width: what it divides by the root of there.
    """

    def read(own: Json, tensors: Collection[str]) -> Json:
        known = own["block_count"] == layers
        return {"query_pre_attn_scalar": width if known else own["attention.key_length"]}

    return Rule((), read, lambda settings, config: {})


# StableLM's feed-forward is beside the attention where a layer has one norm.
ONE_NORM = Rule(
    ("use_parallel_residual",),
    lambda own, tensors: {"use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors},
    lambda settings, config: {"use_parallel_residual": settings["use_parallel_residual"]},
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a general.architecture is in transformers.

    family: its model_type. when: whether a file, by its keys, is of this one of several families
    that share a name. keys: further GGUF keys, by their key of config.json; rules: others. absent:
    what llama.cpp takes for keys that a file lacks, see `ABSENT`; only: see `ONLY`. settings: what
    config.json says of all of its models. rows: the norms and sublayers of a layer; other_rows: as
    some files have them in place of those with the same parameters. turned: queries and keys have
    the two halves of a head interleaved, as the rotation of the first Llama wants it. offset: what
    is added to the scales of norms. tied: the output is the embedding's table where the file has
    none. shown: keys of config.json that say whether a file has a tensor. share: the key of the
    share of a head that turns.
    """

    name: str
    family: str
    when: Callable[[Json], bool] = lambda own: True
    rows: tuple[Row, ...] = rows.PRE + rows.SUBLAYERS
    other_rows: tuple[Row, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    absent: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    turned: bool = False
    offset: float = 0.0
    tied: bool = True
    shown: Mapping[str, str] = field(default_factory=dict)
    share: str = "partial_rotary_factor"

    def config_keys(self) -> dict[str, str]:
        """Return {GGUF key, less the architecture's name: key of config.json}."""
        family: Family = FAMILIES[self.family]
        there = {key: family.sizes[ours] for ours, key in SIZES.items() if ours in family.sizes}
        there[EPSILONS[family.choices["norm"]]] = family.sizes["norm_epsilon"]
        if "rope_theta" in family.defaults:
            there["rope.freq_base"] = "rope_theta"
        return {k: v for k, v in {**there, **self.keys}.items() if k not in self.ruled()}

    def ruled(self) -> set[str]:
        """Return the keys that rules read."""
        return {key for rule in self.rules for key in rule.keys}

    def filled(self, own: Json) -> Json:
        """Return a file's keys with what llama.cpp takes for absent ones.

        Raises ValueError for a required key that is absent, and one of another value than is known.
        """
        full = {key: value for key, value in own.items() if value or not key.endswith("scale")}
        for key, default in {**ABSENT, **self.absent}.items():
            value = default(full) if callable(default) else default
            if value is not None or not callable(default):
                full.setdefault(key, value)
        for key in (*self.config_keys(), *self.ruled()):
            if key not in full:
                raise ValueError(f"'{self.name}.{key}' is missing")
        for key, (default, known) in {**ONLY, **self.only}.items():
            value = full.get(key, default)
            if value != known:
                absent = "" if key in full else ", which llama.cpp takes where the key is absent,"
                raise ValueError(
                    f"{self.name}.{key}={value!r:.40}{absent} is not known here; known is {known!r}"
                )
        return full


_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
# Multipliers, which 0 turns off as well.
_GRANITE: dict[str, Any] = {
    "turned": True,
    "keys": {
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "attention.scale": "attention_multiplier",
        "logit_scale": "logits_scaling",
    },
    "absent": {
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "attention.scale": one_by_root("attention.key_length"),
    },
    "only": {"rope.scaling.finetuned": (True, True)},  # without which nothing turns
}
_EXPERT_WIDTH = {
    "feed_forward_length": same_as("expert_feed_forward_length"),
    "expert_feed_forward_length": divided("feed_forward_length", "expert_used_count"),
}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

_ALL = (
    Architecture(name="llama", family="llama", turned=True, shown=_BIASES),
    Architecture(name="qwen2", family="qwen2"),
    Architecture(name="qwen3", family="qwen3"),
    Architecture(name="gemma", family="gemma", offset=1.0),
    Architecture(
        name="gemma2",
        family="gemma2",
        offset=1.0,
        rows=rows.BOTH + rows.SUBLAYERS,
        keys=_CAPS,
        rules=(WINDOWS, query_scalar(46, 144)),
        absent={WINDOW: 4096, PATTERN: 2}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    Architecture(
        name="gemma3",
        family="gemma3_text",
        offset=1.0,
        rows=rows.BOTH + rows.SUBLAYERS,
        keys={
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        rules=(WINDOWS, query_scalar(62, 168)),
        absent={
            WINDOW: 0,
            PATTERN: 6,
            "rope.freq_base_swa": 10000.0,
            "final_logit_softcapping": 0.0,
        },
    ),
    Architecture(name="gpt2", family="gpt2", rows=rows.PRE + rows.FUSED),
    Architecture(
        name="bert",
        family="bert",
        rows=rows.POST + rows.SUBLAYERS,
        settings={"architectures": ["BertModel"], "hidden_act": "gelu"},
        only={"attention.causal": (True, False)},
        tied=False,
    ),
    # llama.cpp knows by the architecture whether weights of experts are made to sum to 1.
    Architecture(
        name="qwen2moe",
        family="qwen2_moe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        absent={
            **_EXPERT_WIDTH,
            "expert_shared_feed_forward_length": same_as("feed_forward_length"),
        },
        settings={"norm_topk_prob": False},
        shown={"qkv_bias": "blk.0.attn_q.bias"},
    ),
    Architecture(
        name="qwen3moe",
        family="qwen3_moe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        absent=_EXPERT_WIDTH,
        settings={"norm_topk_prob": True},
    ),
    Architecture(
        name="gpt-oss",
        family="gpt_oss",
        rows=(*rows.AFTER, *rows.SUBLAYERS, *rows.EXPERTS, rows.SINKS),
        keys={"expert_feed_forward_length": "intermediate_size"},
        rules=(WINDOWS,),
        absent={PATTERN: 2, "feed_forward_length": same_as("expert_feed_forward_length")},
    ),
    Architecture(name="olmo2", family="olmo2", rows=rows.OUT + rows.OVER_HEADS),
    Architecture(
        name="olmoe",
        family="olmoe",
        rows=rows.PRE + rows.OVER_HEADS + rows.EXPERTS,
        settings={"norm_topk_prob": False},
    ),
    Architecture(
        name="phi3",
        family="phi3",
        rows=rows.PRE + rows.PHI3,
        keys={WINDOW: "sliding_window"},
        absent={WINDOW: 0},
    ),
    Architecture(name="granite", family="granite", shown=_BIASES, **_GRANITE),
    Architecture(
        name="granitemoe",
        family="granitemoe",
        rows=rows.PRE + rows.SUBLAYERS + rows.EXPERTS,
        **_GRANITE,
    ),
    # Every fourth layer does not turn, which files do not say.
    Architecture(name="smollm3", family="smollm3", turned=True),
    # llama.cpp has no windows there.
    Architecture(
        name="starcoder2",
        family="starcoder2",
        settings={"sliding_window": None, "hidden_act": "gelu_new"},
    ),
    Architecture(
        name="stablelm",
        family="stablelm",
        rules=(ONE_NORM,),
        absent={"use_parallel_residual": None},
        shown={"use_qkv_bias": "blk.0.attn_q.bias"},
    ),
    Architecture(
        name="gptneox",
        family="gpt_neox",
        rows=rows.PRE + rows.FUSED,
        keys={
            "rope.freq_base": "rotary_emb_base",
            "use_parallel_residual": "use_parallel_residual",
        },
        settings={"hidden_act": "gelu"},
        share="rotary_pct",
    ),
)
NAMES = tuple(dict.fromkeys(one.name for one in _ALL))


def architecture_named(name: str, own: Json) -> Architecture:
    """Return the architecture of a name in NAMES that a file with these keys is of."""
    return next(one for one in _ALL if one.name == name and one.when(own))


def each() -> tuple[Architecture, ...]:
    """Return all, in the order in which an export tries them."""
    return _ALL
