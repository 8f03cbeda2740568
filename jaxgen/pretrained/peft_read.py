"""Adapters of PEFT, read: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files, tree
from jaxgen.adapters.adapter import Adapter
from jaxgen.adapters.sites import sites
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, nearest
from jaxgen.models import api
from jaxgen.models.families.family import Family
from jaxgen.models.families.weights import Theirs, table
from jaxgen.pretrained import peft_virtual
from jaxgen.pretrained.peft_names import Module, Part, modules
from jaxgen.store import safetensors

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG = 1 << 20
PREFIX = "base_model.model."
# Keys of each kind: what is read, and what the tensors say as well or has no effect on what they
# compute, such as how training began.
_ALL = (
    "peft_type base_model_name_or_path revision task_type auto_mapping peft_version inference_mode"
)
_MODULES = "target_modules exclude_modules modules_to_save fan_in_fan_out"
_VIRTUAL = (
    f"{_ALL} num_virtual_tokens num_transformer_submodules token_dim num_attention_heads num_layers"
)
KEYS = {
    kind: frozenset(names.split())
    for kind, names in {
        "LORA": f"{_ALL} {_MODULES} r lora_alpha lora_dropout rank_pattern alpha_pattern "
        "use_rslora use_dora layers_to_transform layers_pattern init_lora_weights bias "
        "megatron_config megatron_core loftq_config eva_config corda_config lora_ga_config "
        "velora_config qalora_group_size runtime_config merge_weights",
        "IA3": f"{_ALL} {_MODULES} feedforward_modules init_ia3_weights",
        "PROMPT_TUNING": f"{_VIRTUAL} prompt_tuning_init prompt_tuning_init_text "
        "tokenizer_name_or_path tokenizer_kwargs",
        "P_TUNING": f"{_VIRTUAL} encoder_reparameterization_type encoder_hidden_size "
        "encoder_num_layers encoder_dropout",
        "PREFIX_TUNING": f"{_VIRTUAL} init_weights encoder_hidden_size prefix_projection",
    }.items()
}
# First numbers that leave the base as it is; others take their product out of it.
INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
PARTS = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude", "ia3_l": "factors"}


def is_peft(folder: Path) -> bool:
    """Return whether a folder holds an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def read_settings(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json; CheckpointError for a key that changes what we would compute."""
    path = folder / CONFIG
    about = files.read_json(path, "adapter config", MAX_CONFIG)
    if (kind := about.get("peft_type")) not in KEYS:
        raise CheckpointError(f"{path}: peft_type={kind!r:.40} is not read; {', '.join(KEYS)} are")
    for key, value in about.items():
        off = value is None or value is False or value in ({}, [], "")
        if key not in KEYS[kind] and not off:
            known = "" if key in KNOWN else nearest(key, KEYS[kind])
            raise CheckpointError(
                f"{path}: {key}={value!r:.60} is not followed here{known}; train the adapter "
                f"without it"
            )
    if (initial := about.get("init_lora_weights", True)) not in INITIAL:
        raise CheckpointError(
            f"{path}: init_lora_weights={initial!r:.40} belongs to a base with the first product "
            f"taken out; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    for key, kind in (("r", int), ("lora_alpha", (int, float)), ("lora_dropout", (int, float))):
        value = about.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, kind) or value < 0:
            raise CheckpointError(f"{path}: {key}={value!r:.40} is no number of 0 or more")
    return about


# Keys of PEFT 0.21 that are followed nowhere here.
KNOWN = frozenset(
    "trainable_token_indices alora_invocation_tokens use_qalora monteclora_config "
    "layer_replication lora_bias target_parameters use_bdlora arrow_config kasa_config "
    "ensure_weight_tying enable_lora modules_to_save".split()
)


def base_of(folder: Path) -> str | None:
    """Return the model that an adapter was trained on, as its config names it."""
    about = read_settings(folder)
    name, revision = about.get("base_model_name_or_path"), about.get("revision")
    local = not isinstance(name, str) or Path(name).exists() or not revision or "@" in name
    return name if local else f"{name}@{revision}"


def read_adapter(folder: Path, family: Family, config: ModelConfig) -> Adapter:
    """Return an adapter of PEFT for a model of this family and config.

    Raises CheckpointError that names what is missing, unknown, of another shape or not followed.
    """
    about = read_settings(folder)
    if about["peft_type"] in peft_virtual.KINDS:
        return peft_virtual.read_virtual(_weights(folder), about, config)
    found, whole = _sorted(folder, family, config)
    _check_targets(folder, about, found, modules(family, config))
    kind = "ia3" if about["peft_type"] == "IA3" else "dora" if about.get("use_dora") else "lora"
    flat: dict[str, np.ndarray] = {}
    ranks: dict[str, np.ndarray] = {}
    alphas: dict[str, np.ndarray] = {}
    inputs: set[str] = set()
    known, linear = sites(config), modules(family, config)
    widths = _widths(found, linear)
    for name, tensors in found.items():
        for part in linear[name].parts:
            if kind == "ia3":
                _read_factors(flat, inputs, part, tensors["factors"], linear[name])
                continue
            rank, stack = len(tensors["a"]), known[part.path].stack
            zeros = np.zeros(stack, np.float64)
            ranks.setdefault(part.path, zeros.astype(np.int64))[part.at] = rank
            alpha = _pattern(about.get("alpha_pattern"), name, about.get("lora_alpha", 8))
            alphas.setdefault(part.path, zeros)[part.at] = alpha
            if (wanted := _pattern(about.get("rank_pattern"), name, about.get("r", 8))) != rank:
                raise CheckpointError(
                    f"{folder / WEIGHTS}: {name} has rank {rank}, but {CONFIG} says {wanted}"
                )
            _read_low_rank(flat, part, tensors, widths[part.path])
    targets = tuple(path for path in known if any(f.startswith(f"{path}/") for f in flat))
    saved = _read_whole(folder, whole, table(family, config), config)
    return Adapter(
        kind,
        tree.unflatten(flat | saved),
        ranks=ranks,
        alphas=alphas,
        scaling="root" if about.get("use_rslora") else "rank",
        targets=targets,
        inputs=tuple(path for path in targets if path in inputs),
        saved=tuple(saved),
        dropout=float(about.get("lora_dropout", 0.0)),
        base=about.get("base_model_name_or_path"),
    )


def _weights(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.exists():
        pickle = f"; {PICKLE} is pickle, which is not read" if (folder / PICKLE).exists() else ""
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}{pickle}; save it with PEFT as safetensors"
        )
    return path


def _sorted(folder: Path, family: Family, config: ModelConfig) -> tuple[dict, dict]:
    """Return ({module: {part: array}}, {tensor of the model: array}) of the file."""
    path = _weights(folder)
    linear, every = modules(family, config), table(family, config)
    stored = {name.removeprefix(PREFIX): t for name, t in safetensors.open_file(path).items()}
    prefix = family.moved.get(config.head, family.prefix)
    if prefix and not any(name.startswith(prefix) for name in stored):
        bare = {name for name in stored if name not in every}
        stored = {prefix + n if n in bare else n: t for n, t in stored.items()}
    found: dict[str, dict[str, np.ndarray]] = {}
    whole, lost = {}, []
    for name, tensor in stored.items():
        home, _, part = name.removesuffix(".weight").rpartition(".")
        plain = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if part in PARTS and home in linear:
            array = safetensors.read_tensor(tensor)
            _check_shape(path, name, array, PARTS[part], linear[home])
            found.setdefault(home, {})[PARTS[part]] = np.asarray(array, np.float32)
        elif (own := _original(plain, family, every)) in every and part not in PARTS:
            array = safetensors.read_tensor(tensor)
            if own in whole and not np.array_equal(whole[own], array):
                raise CheckpointError(
                    f"{path}: {own} and {plain} differ, which this model has as one; make the "
                    f"base with tables of their own"
                )
            whole[own] = array
        else:
            lost.append(f"{name}{nearest(home if part in PARTS else plain, linear, 'is it')}")
    if tables := [name for name in lost if "lora_embedding_" in name]:
        raise CheckpointError(
            f"{path}: {tables[0]} is LoRA of a table of tokens, which is not followed here; train "
            f"the adapter with modules_to_save for that, or merge it with PEFT"
        )
    if lost:
        raise CheckpointError(
            f"{path}: {len(lost)} tensors stand beside no matrix of this model; it is an adapter "
            f"of another base, or of tables: {', '.join(lost[:3])}"
        )
    for name, tensors in found.items():
        if tensors.keys() not in ({"a", "b"}, {"a", "b", "magnitude"}, {"factors"}):
            raise CheckpointError(f"{path}: {name} has {', '.join(tensors)} alone")
    return found, whole


def _original(name: str, family: Family, every: Mapping[str, Theirs]) -> str:
    """Return the tensor that a name stands for, where a model has it under two names."""
    return name if name in every else family.copies.get(name, name)


def _check_shape(path: Path, name: str, array: np.ndarray, part: str, module: Module) -> None:
    ins, outs = module.num_inputs, module.num_outputs
    fits = {
        "a": array.ndim == 2 and array.shape[1] == ins,
        "b": array.ndim == 2 and array.shape[0] == outs,
        "magnitude": array.size == outs,
        "factors": array.shape in ((1, ins), (outs, 1)),
    }
    if not fits[part] or not array.size:
        raise CheckpointError(
            f"{path}: {name} is {list(array.shape)}, but the module goes from {ins} to {outs}: it "
            f"is an adapter of another base"
        )


def _check_targets(
    folder: Path, about: Mapping[str, Any], found: Mapping, linear: Mapping[str, Module]
) -> None:
    """Raise CheckpointError unless each module that the config targets by name has its tensors."""
    targets = about.get("target_modules")
    if not isinstance(targets, list) or about.get("exclude_modules"):
        return
    if about.get("layers_to_transform") not in (None, []):
        return
    for name in linear:
        if name not in found and any(f".{name}".endswith(f".{target}") for target in targets):
            raise CheckpointError(
                f"{folder / WEIGHTS} has no tensors for {name}, which {CONFIG} targets; it is an "
                f"adapter of another base, or not whole"
            )


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _widths(found: Mapping[str, Any], linear: Mapping[str, Module]) -> dict[str, int]:
    """Return the largest rank of each of our weights, over its layers."""
    result: dict[str, int] = {}
    for name, tensors in found.items():
        for part in linear[name].parts:
            result[part.path] = max(result.get(part.path, 0), len(tensors.get("a", ())))
    return result


def _home(flat: dict[str, np.ndarray], name: str, shape: tuple[int, ...], fill: float) -> Any:
    return flat.setdefault(name, np.full(shape, fill, np.float32))


def _read_low_rank(flat: dict, part: Part, tensors: Mapping[str, np.ndarray], width: int) -> None:
    path, at, site, outputs, inputs = part
    a, b = tensors["a"], tensors["b"]
    home = _home(flat, f"{path}/a", (*site.stack, *inputs.shape, width), 0.0)
    home[at][..., : len(a)] = np.moveaxis(a[:, inputs], 0, -1)
    home = _home(flat, f"{path}/b", (*site.stack, width, *outputs.shape), 0.0)
    home[at][: len(a)] = np.moveaxis(b[outputs], -1, 0)
    if "magnitude" in tensors:
        home = _home(flat, f"{path}/magnitude", (*site.stack, *outputs.shape), 1.0)
        home[at] = tensors["magnitude"].reshape(-1)[outputs]


def _read_factors(
    flat: dict, inputs: set[str], part: Part, factors: np.ndarray, module: Module
) -> None:
    path, at, site = part.path, part.at, part.site
    # A module as wide as it is long says it by the shape alone.
    before = factors.shape == (1, module.num_inputs)
    numbers, name = (part.inputs, "before") if before else (part.outputs, "gain")
    home = _home(flat, f"{path}/{name}", (*site.stack, *numbers.shape), 1.0)
    home[at] = factors.reshape(-1)[numbers]
    inputs |= {path} if before else set()


def _read_whole(
    folder: Path, whole: Mapping[str, np.ndarray], every: Mapping[str, Theirs], config: ModelConfig
) -> dict[str, np.ndarray]:
    """Return the parameters that the adapter holds whole."""
    shapes = tree.flatten(api.abstract(config))
    result: dict[str, np.ndarray] = {}
    parts: dict[str, int] = {}
    for name, tensor in whole.items():
        if tuple(tensor.shape) != every[name].shape:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} is {list(tensor.shape)}, not "
                f"{list(every[name].shape)}: it is an adapter of another base"
            )
        for link in every[name].links:
            leaf = shapes[link.path]
            home = result.setdefault(link.path, np.empty(leaf.shape, leaf.dtype))
            home[link.at] = link.read(tensor).astype(leaf.dtype)
            parts[link.path] = parts.get(link.path, 0) + 1
    for path, count in parts.items():
        wanted = sum(link.path == path for theirs in every.values() for link in theirs.links)
        if count != wanted:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {path} is saved whole in {count} of {wanted} parts; all of "
                f"it, or nothing"
            )
    return result
