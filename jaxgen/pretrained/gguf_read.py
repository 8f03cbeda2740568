"""A GGUF file as transformers would have it in a folder: config.json, weights, generation config.

Everything above reads these as it does those of a folder (`hub_read`), through the same families.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxgen.errors import CheckpointError, nearest
from jaxgen.models import families
from jaxgen.models.families.family import Family
from jaxgen.pretrained.gguf_names import (
    ARCHITECTURES,
    EPSILONS,
    HARMLESS,
    KEYS,
    ROWS,
    SIZES,
    TABLES,
    Architecture,
)
from jaxgen.store import gguf
from jaxgen.store.gguf import Contents
from jaxgen.store.gguf_blocks import PLAIN, Q8_0

Json = dict[str, Any]
# Tensors that say what the config says, or that nothing computes by.
IGNORED = ("rope_freqs.weight", "blk.*.attn_rot_embd.weight", "blk.*.rope_freqs.weight")
ROPE_FACTORS = "rope_freqs.weight"
QUERIES, KEY_HEADS = ("attn_q.weight", "attn_q.bias"), ("attn_k.weight", "attn_k.bias")
# general.sampling.*: key of generation_config.json, and what llama.cpp takes where a file says
# nothing (common/common.h).
SAMPLING: dict[str, tuple[str, float | None]] = {
    "temp": ("temperature", 0.8),
    "top_k": ("top_k", 40),
    "top_p": ("top_p", 0.95),
    "min_p": ("min_p", 0.05),
    "penalty_repeat": ("repetition_penalty", None),
}
# llama.h: unspecified and none, mean, first token, last token.
POOLINGS = {0: None, 1: "mean", 2: "cls", 3: "lasttoken"}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # each of which ends a turn


def is_gguf(path: Path) -> bool:
    """Return whether a path is that of a GGUF file, by its name."""
    return path.suffix.lower() == gguf.SUFFIX


class Stored(NamedTuple):
    """A tensor of a GGUF file as transformers has it.

    turned: heads whose halves are interleaved in it, 0 for none; offset: what was added to it.
    """

    tensor: gguf.Tensor
    turned: int = 0
    offset: float = 0.0

    @property
    def path(self) -> Path:
        """The file."""
        return self.tensor.path

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.tensor.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """What `read` gives, as safetensors calls it."""
        return self.tensor.dtype if self.tensor.dtype in PLAIN else "F32"

    def read(self) -> np.ndarray:
        """Return the tensor's values; CheckpointError if the file has changed or can't be read."""
        rows = gguf.read_rows(self.tensor)
        values = gguf.values(self.tensor, rows if len(self.shape) == 1 else self.halves(rows))
        values = self.halves(values) if len(self.shape) == 1 else values
        return values - np.asarray(self.offset, values.dtype) if self.offset else values

    def blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the int8 values [..., I] of a Q8_0 tensor, and its scales [..., I / 32]."""
        rows = self.halves(gguf.read_rows(self.tensor))
        packed = rows.reshape(-1).view(Q8_0)
        values = packed["q"].reshape(self.shape)
        return values, packed["d"].astype(np.float32).reshape(*self.shape[:-1], -1)

    def halves(self, rows: np.ndarray) -> np.ndarray:
        """Return rows with the first half of each head before its second one."""
        if not self.turned:
            return rows
        pairs = rows.reshape(self.turned, -1, 2, *rows.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def read_family(path: Path) -> tuple[Family, Json]:
    """Return (the family with the file's names of tensors, config.json) of a GGUF file.

    Raises CheckpointError for a damaged file, an architecture that is not known, and one that
    computes by a key that is not known here.
    """
    contents = gguf.open_file(path)
    name, architecture = _architecture(path, contents)
    family = families.named(architecture.family, str(path))
    try:
        config = _config(contents, name, architecture, family)
        keys = {key: f"{name}.{ours}" for ours, key in _keys(architecture, family).items()}
        keys |= {family.sizes[ours]: key for ours, key in TABLES.items() if ours in family.sizes}
        return replace(named_family(architecture), called=keys), config
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def named_family(architecture: Architecture) -> Family:
    """Return the family of an architecture with the names that its tensors have in GGUF files."""
    return replace(
        families.FAMILIES[architecture.family],
        prefix="",
        layer="blk.{}.",
        rows=ROWS,
        layer_rows=architecture.rows,
        head_rows={},
        moved={},
        copies={},
        ignored_tensors=IGNORED,
    )


def turned(name: str, architecture: Architecture, heads: Any, kv_heads: Any) -> int:
    """Return the number of heads whose halves are interleaved in a tensor, 0 if they are not."""
    part = name.split(".", 2)[-1]
    found = heads if part in QUERIES else kv_heads if part in KEY_HEADS else 0
    return found if architecture.turned and isinstance(found, int) else 0


def tensors(path: Path) -> dict[str, Stored]:
    """Return {name: Stored} of a file's tensors."""
    contents = gguf.open_file(path)
    name, architecture = _architecture(path, contents)
    heads = contents.metadata.get(f"{name}.attention.head_count")
    kv_heads = contents.metadata.get(f"{name}.attention.head_count_kv", heads)
    found = {}
    for key, tensor in contents.tensors.items():
        count = turned(key, architecture, heads, kv_heads)
        if count and (count < 0 or tensor.shape[0] % (2 * count)):
            raise CheckpointError(
                f"{path}: {key!r} has {tensor.shape[0]} rows, which are no {count} heads of pairs"
            )
        offset = architecture.offset if key.endswith("norm.weight") else 0.0
        found[key] = Stored(tensor, count, offset)
    return found


def read_generation(path: Path) -> Json:
    """Return what a file says of generation, by the keys of generation_config.json.

    How it samples where the file does not say is as in llama.cpp.
    """
    metadata = gguf.open_file(path).metadata
    keys: Json = {}
    ends = [metadata.get(f"tokenizer.ggml.{name}") for name in ENDS]
    if known := [*dict.fromkeys(i for i in ends if type(i) is int)]:
        keys["eos_token_id"] = known
    for name, theirs in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        if (value := metadata.get(f"tokenizer.ggml.{theirs}")) is not None:
            keys[name] = value
    for name, (key, default) in SAMPLING.items():
        keys[key] = _short(metadata.get(f"general.sampling.{name}", default))
    keys["do_sample"] = keys["temperature"] != 0
    return {key: value for key, value in keys.items() if value is not None}


def read_templates(path: Path) -> dict[str, str]:
    """Return {name: chat template} of a file; "default" is the one without a name."""
    metadata = gguf.open_file(path).metadata
    home = "tokenizer.chat_template"
    found = {
        "default" if key == home else key.removeprefix(f"{home}."): value
        for key, value in metadata.items()
        if key == home or key.startswith(f"{home}.")
    }
    return {name: value for name, value in found.items() if isinstance(value, str)}


def read_pooling_mode(path: Path) -> str | None:
    """Return a file's pooling as sentence-transformers calls it; None if it names none."""
    contents = gguf.open_file(path)
    kind = contents.metadata.get(f"{_architecture(path, contents)[0]}.pooling_type", 0)
    if kind not in POOLINGS:
        raise CheckpointError(
            f"{path}: pooling_type={kind!r:.40} is not known; known are 0 to {max(POOLINGS)}"
        )
    return POOLINGS[kind]


def _architecture(path: Path, contents: Contents) -> tuple[str, Architecture]:
    name = contents.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture={name!r:.60} is not known"
            f"{nearest(str(name), ARCHITECTURES)}; known are {', '.join(ARCHITECTURES)}"
        )
    if (count := contents.metadata.get("split.count", 1)) != 1:
        raise CheckpointError(
            f"{path}: it is one of {count} parts; join them with llama.cpp: "
            f"`llama-gguf-split --merge`"
        )
    return name, ARCHITECTURES[name]


def _keys(architecture: Architecture, family: Family) -> dict[str, str]:
    """Return {GGUF key, less the architecture's name: key of config.json}."""
    keys = KEYS | dict(architecture.keys)
    keys |= {key: family.sizes[ours] for ours, key in SIZES.items() if ours in family.sizes}
    return keys | {EPSILONS[family.choices["norm"]]: family.sizes["norm_epsilon"]}


def _config(contents: Contents, name: str, architecture: Architecture, family: Family) -> Json:
    """Return the config.json of a file; ValueError for a key that is not known or can't be."""
    own = {
        key.removeprefix(f"{name}."): _one(key, value)
        for key, value in contents.metadata.items()
        if key.startswith(f"{name}.")
    }
    keys = _keys(architecture, family)
    for key, value in own.items():
        if key not in keys and key not in HARMLESS and value not in (0, 0.0, False, ""):
            raise ValueError(
                f"{name}.{key}={value!r:.60} is not known here, and the model may compute by it"
                f"{nearest(key, keys)}; take a model of another architecture"
            )
    config = {keys[key]: value for key, value in own.items() if key in keys}
    if config.get("sliding_window") == 0:
        config["sliding_window"] = None
    config |= {"model_type": family.model_type, **architecture.settings}
    for field, tensor in TABLES.items():
        if tensor in contents.tensors and field in family.sizes:
            config[family.sizes[field]] = contents.tensors[tensor].shape[0]
    if architecture.tied:
        config["tie_word_embeddings"] = "output.weight" not in contents.tensors
    config |= {key: tensor in contents.tensors for key, tensor in architecture.shown.items()}
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if (
        "head_dim" in family.defaults
        and isinstance(heads, int)
        and isinstance(width, int)
        and heads
    ):
        config.setdefault("head_dim", width // heads if family.defaults["head_dim"] else None)
    _add_scores(config, own, architecture)
    if "rope_theta" in family.defaults:
        _add_rope(config, own, contents, architecture.share, family)
    return config


def _one(key: str, value: Any) -> Any:
    """Return a value of the metadata as JSON has it; of a list of equal ones, that one."""
    if isinstance(value, np.ndarray):
        many = [_short(one) for one in value.tolist()]
        return many[0] if many and many.count(many[0]) == len(many) else many
    return _short(value)


def _short(value: Any) -> Any:
    """Return a number that is stored in 32 bits in the few digits that it was made of."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _add_scores(config: Json, own: Json, architecture: Architecture) -> None:
    """Set what scores are divided by, where the family does not divide by the root of head_dim."""
    width = config.get("head_dim")
    if architecture.scalars is None or not isinstance(width, int):
        return
    scalar = architecture.scalars.get(config.get("num_hidden_layers", 0), width)
    if own.get("attention.scale"):
        scalar = round(_positive(own, "attention.scale", 1.0) ** -2)
    config["query_pre_attn_scalar"] = scalar


def _add_rope(config: Json, own: Json, contents: Contents, share: str, family: Family) -> None:
    """Set what is stretched in the rotation, and how much of a head turns."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    derived = width // heads if isinstance(width, int) and isinstance(heads, int) and heads else 0
    width = config.get("head_dim") or derived
    turned = own.get("rope.dimension_count", width)
    partly = turned != width or share in family.defaults
    if partly and isinstance(width, int) and isinstance(turned, int) and width:
        config[share] = turned / width
    kind = own.get("rope.scaling.type", "none")
    factor = _positive(own, "rope.scaling.factor", _positive(own, "rope.scale_linear", 1.0))
    before = own.get("rope.scaling.original_context_length")
    if kind == "none" and "rope.scale_linear" in own and factor != 1:
        kind = "linear"
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"rope.scaling.type={kind!r:.40} is not known here")
    if kind == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        times = _positive(own, "rope.scaling.attn_factor", 1.0)
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": before or config.get("max_position_embeddings"),
            "beta_fast": own.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": own.get("rope.scaling.yarn_beta_slow", 1.0),
            "attention_factor": None if times == 1 else times * (0.1 * math.log(factor) + 1),
        }
    elif ROPE_FACTORS in contents.tensors:
        factors = Stored(contents.tensors[ROPE_FACTORS]).read().astype(np.float64)
        theta = _positive(config, "rope_theta", 10000.0)
        config["rope_scaling"] = _llama3(factors.reshape(-1), theta, before)


def _positive(values: Json, key: str, default: float) -> float:
    """Return a number of a mapping; ValueError if it is none above 0."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{key}={value!r:.40} is no number above 0")
    return value


def rope_factors(theta: float, pairs: int, scaling: Json) -> np.ndarray:
    """Return what Llama 3.1 (Meta 2024) divides the frequency of each rotated pair by.

    scaling: its four settings, as config.json calls them.
    """
    factor, before = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = before / (2 * np.pi * theta ** (np.arange(pairs) / pairs))
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _llama3(factors: np.ndarray, theta: float, before: Any) -> Json:
    """Return the rope_scaling that gives these factors; ValueError if none of Llama 3.1 does.

    A file holds the factors alone. Those between 1 and the largest lie on a line, from which the
    bounds follow; where there are none, the bounds of Llama's own models are tried.
    """
    largest, pairs = float(factors.max()), len(factors)
    guesses = [(1.0, 4.0, before or 8192)]
    between = (factors > 1.0001) & (factors < largest * 0.9999)
    smooth = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
    waves = 2 * np.pi * theta ** (np.flatnonzero(between) / pairs)
    guesses += [
        (1.0, 4.0, round(wave * (1 + 3 * part)))
        for wave, part in zip(waves[:1], smooth[:1], strict=True)
    ]
    if len(waves) > 1:
        slope, level = np.polyfit(1 / waves, smooth, 1)
        span = -1 / level
        guesses.append((1.0, 1.0 + span, round(slope * span)))
    for low, high, context in guesses:
        found = {
            "rope_type": "llama3",
            "factor": float(str(np.float32(largest))),
            "original_max_position_embeddings": context,
            "low_freq_factor": low,
            "high_freq_factor": round(high, 3),
        }
        made = rope_factors(theta, pairs, found) if high > low else factors * np.inf
        if np.allclose(made, factors, rtol=1e-4):
            return found
    raise ValueError(f"the factors of {ROPE_FACTORS} are not those of Llama 3.1")
