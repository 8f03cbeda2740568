"""config.json of a GGUF file's keys, and the way back.

A key that a file lacks is what llama.cpp takes for it, or it is refused: never a family's default.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, nearest
from jaxgen.models.families.family import MAX_LAYERS, Family
from jaxgen.pretrained import gguf_names
from jaxgen.pretrained.gguf_architecture import Architecture
from jaxgen.pretrained.gguf_keys import HARMLESS, ONLY, WINDOW, Json, positive
from jaxgen.store import gguf
from jaxgen.store.gguf import Contents

# Sizes that are the rows of a tensor.
TABLES = {"vocab_size": "token_embd.weight", "embed.types": "token_types.weight"}
ROPE_FACTORS = "rope_freqs.weight"
# What pairs are divided by in texts of the context before, and in longer ones.
LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
COUNTS = (
    "count",
    "count_kv",
    "length",
    "window",
    "rank",
    "kernel",
    "size",
)  # how the keys of whole numbers end


def architecture_of(path: Path, contents: Contents) -> Architecture:
    """Return what a file's model is; CheckpointError for an architecture that is not known."""
    name = contents.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in gguf_names.NAMES:
        raise CheckpointError(
            f"{path}: general.architecture={name!r:.60} is not known"
            f"{nearest(str(name), gguf_names.NAMES)}; known are {', '.join(gguf_names.NAMES)}"
        )
    if (count := contents.metadata.get("split.count", 1)) != 1:
        raise CheckpointError(
            f"{path}: it is one of {count} parts; join them with llama.cpp: "
            f"`llama-gguf-split --merge`"
        )
    return gguf_names.architecture_named(name, _meta(contents, name), contents.tensors.keys())


def read_family(path: Path) -> tuple[Family, Json]:
    """Return (the family with the file's names of tensors, config.json) of a GGUF file.

    Raises CheckpointError for a damaged file, an architecture that is not known, and one that
    computes by a key that is not known here.
    """
    contents = gguf.open_file(path)
    architecture = architecture_of(path, contents)
    family = architecture.named_family()
    keys = {ours: f"{architecture.name}.{key}" for key, ours in architecture.config_keys().items()}
    keys |= {family.sizes[ours]: key for ours, key in TABLES.items() if ours in family.sizes}
    meta = _meta(contents, architecture.name)
    if type(ahead := meta.get("nextn_predict_layers")) is int and type(meta["block_count"]) is int:
        last = range(meta["block_count"] - min(ahead, MAX_LAYERS), meta["block_count"])
        left = (f"blk.{layer}.*" for layer in last)
        family = replace(family, ignored_tensors=(*family.ignored_tensors, *left))
    try:
        return replace(family, called=keys), _config(contents, architecture, family)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _meta(contents: Contents, name: str) -> Json:
    """Return a file's keys of an architecture, less its name."""
    return {
        key.removeprefix(f"{name}."): _one(value)
        for key, value in contents.metadata.items()
        if key.startswith(f"{name}.")
    }


def _config(contents: Contents, architecture: Architecture, family: Family) -> Json:
    """Return the config.json of a file; ValueError for a key that is not known or can't be."""
    meta, keys = _meta(contents, architecture.name), architecture.config_keys()
    known_keys = {*keys, *architecture.ruled(), *HARMLESS, *ONLY, *architecture.only}
    if meta.get("rope.freq_base_swa") == meta.get("rope.freq_base"):
        known_keys.add("rope.freq_base_swa")  # of layers with a window, which turn as the others do
    for key, value in meta.items():
        if key not in known_keys and value not in (0, 0.0, False, ""):
            raise ValueError(
                f"{architecture.name}.{key}={value!r:.60} is not known here, and the model may "
                f"compute by it{nearest(key, keys)}; take a model of another architecture"
            )
    full = architecture.filled(meta)
    lengths = [full.get(f"attention.{part}_length") for part in ("key", "value")]
    latent = "latent.kv_rank" in family.sizes
    if not latent and all(type(length) is int for length in lengths) and lengths[0] != lengths[1]:
        raise ValueError("attention.key_length={} but attention.value_length={}".format(*lengths))
    config = {theirs: full[key] for key, theirs in keys.items()}
    for key in (WINDOW, "attn_logit_softcapping", "final_logit_softcapping"):
        if key in keys:  # which 0 turns off
            config[keys[key]] = full[key] or None
    config |= {"model_type": family.model_type, **architecture.settings}
    for field, tensor in TABLES.items():
        if tensor in contents.tensors and field in family.sizes:
            config[family.sizes[field]] = contents.tensors[tensor].shape[0]
    for key, tensor in architecture.counted.items():
        if tensor not in contents.tensors:
            raise ValueError(f"{tensor!r} is missing")
        config[key] = contents.tensors[tensor].shape[0]
    if architecture.tied and "tie_word_embeddings" not in architecture.settings:
        config["tie_word_embeddings"] = "output.weight" not in contents.tensors
    config |= {key: tensor in contents.tensors for key, tensor in architecture.flags.items()}
    for rule in architecture.rules:
        config |= rule.read(full, contents.tensors.keys())
    if "rope_theta" in family.defaults:
        _add_rope(config, full, contents, architecture, family)
    return config


def _one(value: Any) -> Any:
    """Return a value of the metadata as JSON has it; of a list of equal ones, that one."""
    if isinstance(value, np.ndarray):
        many = [short(one) for one in value.tolist()]
        return many[0] if many and many.count(many[0]) == len(many) else many
    return short(value)


def short(value: Any) -> Any:
    """Return a number that is stored in 32 bits in the few digits that it was made of."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _add_rope(
    config: Json, meta: Json, contents: Contents, architecture: Architecture, family: Family
) -> None:
    """Set what is stretched in the rotation, and how much of a head turns."""
    width, share = meta.get("attention.key_length"), architecture.share
    turned = meta.get("rope.dimension_count", width)
    partly = turned != width or share in family.defaults
    if share and partly and type(width) is int and type(turned) is int and width:
        config[share] = turned / width  # which a family whose heads turn whole refuses
    kind = meta.get("rope.scaling.type", "linear")
    if LONGROPE["long_factor"] in contents.tensors:
        config["rope_scaling"] = _longrope(meta, contents, architecture)
        return
    factor = positive(meta, "rope.scaling.factor", positive(meta, "rope.scale_linear", 1.0))
    names = ("attn_factor",) if kind == "yarn" else ("attn_factor", "yarn_attn_factor")
    times = math.prod(positive(meta, f"rope.scaling.{name}", 1.0) for name in names)
    before = meta.get("rope.scaling.original_context_length")
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"rope.scaling.type={kind!r:.40} is not known here")
    if kind != "yarn" and times != 1:
        raise ValueError(f"rope.scaling.attn_factor={times} with {kind} scaling is not known here")
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": before or meta["context_length"],
            "beta_fast": meta.get("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": meta.get("rope.scaling.yarn_beta_slow", 1.0),
            "attention_factor": None if times == 1 else times * (0.1 * math.log(factor) + 1),
        }
    elif kind == "linear" and factor != 1:
        scaling = {"rope_type": "linear", "factor": factor}
    else:
        scaling = None
    if (tensor := contents.tensors.get(ROPE_FACTORS)) is not None:
        if scaling is not None:
            raise ValueError(f"{ROPE_FACTORS} with rope.scaling.type={kind!r} is not known here")
        factors = gguf.values(tensor, gguf.read_rows(tensor)).astype(np.float64)
        scaling = _llama3(factors.reshape(-1), positive(meta, "rope.freq_base"), before)
    own_scales = config.get("rope_scaling", {}) if scaling else {}
    # Some families stretch where nothing is said.
    config["rope_scaling"] = {**own_scales, **(scaling or {"rope_type": "default"})}


def _longrope(meta: Json, contents: Contents, architecture: Architecture) -> Json:
    """Return the rope_scaling of a file with factors for short and for long texts."""
    context = meta["context_length"]
    before = meta.get("rope.scaling.original_context_length", context)
    times = positive(meta, "rope.scaling.attn_factor", 1.0)
    counts = type(context) is int and type(before) is int and context > before > 1
    implied = math.sqrt(1 + math.log(context / before) / math.log(before)) if counts else 1.0
    exact = implied if np.float32(implied) == np.float32(times) else times
    scaling: Json = {"rope_type": "longrope", "original_max_position_embeddings": before}
    scaling |= dict.fromkeys(architecture.gains, exact)
    for key, name in LONGROPE.items():
        if (tensor := contents.tensors.get(name)) is None:
            raise ValueError(f"{name!r} is missing")
        values = gguf.values(tensor, gguf.read_rows(tensor)).reshape(-1).tolist()
        scaling[key] = [short(one) for one in values]
    return scaling


def write_keys(architecture: Architecture, settings: Json, config: ModelConfig) -> Json:
    """Return the keys of an architecture; settings: config.json of its family."""
    meta: Json = {}
    for key, theirs in architecture.config_keys().items():
        derived = key == "attention.key_length" and config.d_model // config.heads == config.H
        if (value := settings.get(theirs)) is not None and not derived:
            whole = np.uint32 if key.endswith(COUNTS) else np.float32
            meta[key] = value if isinstance(value, bool) else whole(value)
    for key, (absent, expected) in architecture.only.items():
        if expected != absent:
            meta[key] = {bool: bool, int: np.uint32, float: np.float32}[type(expected)](expected)
    for rule in architecture.rules:
        meta |= rule.write(settings, config)
    if config.positions == "rope" or "attention.key_length" in meta:
        meta.setdefault("attention.value_length", np.uint32(config.H))
    if config.positions == "rope":
        meta.setdefault("rope.dimension_count", np.uint32(config.rope.width(config.H)))
    if config.positions == "rope" and config.rope.scaling.kind == "longrope":
        ours = config.rope.scaling
        meta["rope.scaling.type"] = "longrope"
        meta["rope.scaling.original_context_length"] = np.uint32(ours.original_context)
        meta["rope.scaling.attn_factor"] = np.float32(ours.attention or 1.0)
    scaling = settings.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("linear", "yarn"):
        meta["rope.scaling.type"] = scaling["rope_type"]
        meta["rope.scaling.factor"] = np.float32(scaling["factor"])
        if scaling["rope_type"] == "yarn":
            before = scaling["original_max_position_embeddings"]
            meta["rope.scaling.original_context_length"] = np.uint32(before)
            for bound in ("fast", "slow"):
                meta[f"rope.scaling.yarn_beta_{bound}"] = np.float32(scaling[f"beta_{bound}"])
    return {f"{architecture.name}.{key}": value for key, value in meta.items()}


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
        scaling = {
            "rope_type": "llama3",
            "factor": float(str(np.float32(largest))),
            "original_max_position_embeddings": context,
            "low_freq_factor": low,
            "high_freq_factor": round(high, 3),
        }
        expected = rope_factors(theta, pairs, scaling) if high > low else factors * np.inf
        if np.allclose(expected, factors, rtol=1e-4):
            return scaling
    raise ValueError(f"the factors of {ROPE_FACTORS} are not those of Llama 3.1")
