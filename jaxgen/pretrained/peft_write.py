"""Adapters written as PEFT has them, so that `peft` opens them on the same base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files, tree
from jaxgen.adapters import virtual
from jaxgen.adapters.adapter import Adapter
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models.families.family import Family
from jaxgen.models.families.weights import fill, table
from jaxgen.pretrained.peft_names import Module, Part, modules
from jaxgen.pretrained.peft_read import CONFIG, PREFIX, WEIGHTS
from jaxgen.pretrained.peft_virtual import virtual_tensors
from jaxgen.store import safetensors

TASKS = {"classes": "SEQ_CLS", "token_classes": "TOKEN_CLS", "spans": "QUESTION_ANS"}
TASKS |= {"none": "FEATURE_EXTRACTION", "pooled": "FEATURE_EXTRACTION"}


def write_adapter(draft: Path, adapter: Adapter, family: Family, config: ModelConfig) -> None:
    """Write an adapter's two files into a folder.

    A module that holds several of our weights, as GPT-2's c_attn does, has one adapter there: of
    one rank if their first factors are the same, else of the sum of their ranks. Raises ConfigError
    for what no such module can say.
    """
    if adapter.kind in virtual.KINDS:
        tensors, about = virtual_tensors(adapter, config, _task(config))
    else:
        tensors, about = _tensors(adapter, family, config)
    shapes = {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()}
    safetensors.write_safetensors(draft / WEIGHTS, shapes, tensors.__getitem__, {"format": "pt"})
    files.write_json(draft / CONFIG, about)


def _tensors(
    adapter: Adapter, family: Family, config: ModelConfig
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (tensors, adapter_config.json) of adapters beside weights."""
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(adapter.params or {}).items()}
    linear = modules(family, config)
    held: dict[str, tuple[Module, tuple[Part, ...]]] = {}
    for name, module in linear.items():
        parts = tuple(part for part in module.parts if _has(adapter, part))
        if parts:
            held[name] = module, parts
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    feeds = []
    for name, (module, parts) in held.items():
        if adapter.kind == "ia3":
            factors = _factors(flat, adapter, module, parts, name)
            tensors[f"{name}.ia3_l"] = factors
            feeds += [name] if adapter.inputs and parts[0].path in adapter.inputs else []
            continue
        a, b, alphas[name] = _low_rank(flat, adapter, module, parts)
        ranks[name] = len(a)
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        if adapter.kind == "dora":
            magnitudes = _outputs(flat, "magnitude", module, parts)
            if len(parts) < len(module.parts):
                raise ConfigError(
                    f"{name} is one module in PEFT, whose magnitudes need an adapter at all of "
                    f"{', '.join(part.path for part in module.parts)}; merge it instead"
                )
            tensors[f"{name}.lora_magnitude_vector"] = magnitudes
    whole = dict(_whole(flat, adapter, family, config))
    about = _settings(adapter, config, linear, held, ranks, alphas, feeds, whole)
    for name, tensor in whole.items():
        home, _, part = name.rpartition(".")
        tensors[f"{home}.base_layer.{part}" if home in held else name] = tensor
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}, about


def _has(adapter: Adapter, part: Part) -> bool:
    if part.path not in adapter.targets:
        return False
    return adapter.kind == "ia3" or int(adapter.ranks[part.path][part.at]) > 0


def _low_rank(
    flat: Mapping[str, np.ndarray], adapter: Adapter, module: Module, parts: tuple[Part, ...]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (A [r, inputs], B [outputs, r], alpha) of a module."""
    pairs, scales = [], []
    for path, at, _, outputs, inputs in parts:
        rank = int(adapter.ranks[path][at])
        ours_a, ours_b = flat[f"{path}/a"][at][..., :rank], flat[f"{path}/b"][at][:rank]
        a = np.zeros((rank, module.num_inputs), ours_a.dtype)
        a[:, inputs] = np.moveaxis(ours_a, -1, 0)
        b = np.zeros((module.num_outputs, rank), ours_b.dtype)
        b[outputs] = np.moveaxis(ours_b, 0, -1)
        pairs.append((a, b))
        scales.append((float(adapter.alphas[path][at]), float(adapter.scale(path)[at])))
    first, (alpha, scale) = pairs[0][0], scales[0]
    # Other scales than the first one's go into the second factors.
    seconds = [
        b if own == scale else b * np.float32(own / scale)
        for (_, b), (_, own) in zip(pairs, scales, strict=True)
    ]
    if len(parts) == len(module.parts) and all(np.array_equal(a, first) for a, _ in pairs):
        return first, np.sum(seconds, axis=0), alpha
    a, b = np.concatenate([a for a, _ in pairs]), np.concatenate(seconds, axis=1)
    grown = len(a) / len(first)
    return a, b, alpha * (grown if adapter.scaling == "rank" else grown**0.5)


def _outputs(
    flat: Mapping[str, np.ndarray], name: str, module: Module, parts: tuple[Part, ...]
) -> np.ndarray:
    result = np.ones(module.num_outputs, np.float32)
    for part in parts:
        result[part.outputs] = flat[f"{part.path}/{name}"][part.at]
    return result


def _factors(
    flat: Mapping[str, np.ndarray],
    adapter: Adapter,
    module: Module,
    parts: tuple[Part, ...],
    name: str,
) -> np.ndarray:
    if parts[0].path not in adapter.inputs:
        return _outputs(flat, "gain", module, parts)[:, None]
    rows = []
    for part in parts:
        row = np.ones(module.num_inputs, np.float32)
        row[part.inputs] = flat[f"{part.path}/before"][part.at]
        rows.append(row)
    if len(parts) < len(module.parts) or any(not np.array_equal(row, rows[0]) for row in rows):
        raise ConfigError(
            f"{name} is one module in PEFT, whose inputs have one set of factors, but "
            f"{', '.join(part.path for part in module.parts)} have others; merge it instead"
        )
    return rows[0][None]


def _whole(
    flat: Mapping[str, np.ndarray], adapter: Adapter, family: Family, config: ModelConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name of theirs, tensor) of what the adapter holds whole."""
    for name, theirs in table(family, config).items():
        held = [link.path in adapter.saved for link in theirs.links]
        if any(held) and not all(held):
            paths = ", ".join(link.path for link in theirs.links)
            raise ConfigError(f"{name} is one tensor in PEFT; save all of {paths}, or none")
        if all(held):
            yield name, fill(theirs, flat, flat[theirs.links[0].path].dtype)


def _settings(
    adapter: Adapter,
    config: ModelConfig,
    linear: Mapping[str, Any],
    held: Mapping[str, Any],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    feeds: list[str],
    whole: Mapping[str, Any],
) -> dict[str, Any]:
    """Return adapter_config.json."""
    modules_saved = {name.rpartition(".")[0] for name in whole if name.endswith(".weight")}
    biases = {name.rpartition(".")[0] for name in whole if name.endswith(".bias")} - modules_saved
    about: dict[str, Any] = {
        "peft_type": "IA3" if adapter.kind == "ia3" else "LORA",
        "task_type": _task(config),
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "target_modules": _names(list(held), linear),
        "modules_to_save": sorted(modules_saved) or None,
        "fan_in_fan_out": False,
    }
    if adapter.kind == "ia3":
        if biases:
            raise ConfigError("PEFT's IA3 saves no biases; merge it instead")
        return about | {"feedforward_modules": _names(feeds, linear)}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    own = {name: value for name, value in ranks.items() if value != rank}
    alphas = {name: _number(value) for name, value in alphas.items() if value != alpha}
    bias = "none" if not biases else "lora_only" if biases <= held.keys() else "all"
    return about | {
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": own,
        "alpha_pattern": alphas,
        "lora_dropout": adapter.dropout,
        "bias": bias,
        "use_rslora": adapter.scaling == "root",
        "use_dora": adapter.kind == "dora",
        "init_lora_weights": True,
    }


def _task(config: ModelConfig) -> str | None:
    task = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}.get(config.topology)
    return TASKS.get(config.head, task if config.head == "lm" else None)


def _commonest(values: Mapping[str, Any]) -> Any:
    every = list(values.values())
    return max(dict.fromkeys(every), key=every.count)


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _names(chosen: list[str], linear: Mapping[str, Any]) -> list[str]:
    """Return the last words of the modules if these mean no others, else all their names."""
    words = {name.rpartition(".")[2] for name in chosen}
    meant = {name for name in linear if name.rpartition(".")[2] in words}
    return sorted(words if meant == set(chosen) else chosen)
