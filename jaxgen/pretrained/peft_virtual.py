"""Prompt and prefix tuning of PEFT: one tensor, of vectors or of keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import tree
from jaxgen.adapters import virtual
from jaxgen.adapters.adapter import Adapter
from jaxgen.adapters.sites import Site, sites
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.store import safetensors

TENSOR = "prompt_embeddings"
# What a folder holds is what the encoder of P-tuning, or the projection of a prefix, made.
KINDS = {"PROMPT_TUNING": "prompt", "P_TUNING": "prompt", "PREFIX_TUNING": "prefix"}


def read_virtual(path: Path, about: Mapping[str, Any], config: ModelConfig) -> Adapter:
    """Return the adapter of a file of PEFT; CheckpointError if it is one of another base."""
    kind, count = KINDS[about["peft_type"]], about.get("num_virtual_tokens")
    tensors = safetensors.open_file(path)
    if tensors.keys() != {TENSOR} or type(count) is not int or count < 1:
        raise CheckpointError(
            f"{path}: {about['peft_type']} is {TENSOR} of num_virtual_tokens={count!r:.40} alone, "
            f"not {', '.join(tensors)}"
        )
    array = np.asarray(safetensors.read_tensor(tensors[TENSOR]), np.float32)
    targets = _targets(kind, config)
    heads, rows, width = config.K, count, config.embed_width
    if kind == "prefix":
        width = 2 * config.layers * heads * config.H
    elif config.topology == "encoder_decoder":  # PEFT stores rows for the decoder, and reads none
        rows *= about.get("num_transformer_submodules") or 1
    if array.shape != (rows, width):
        raise CheckpointError(
            f"{path}: {TENSOR} is {list(array.shape)}, not {[rows, width]}: it is an adapter of "
            f"another base"
        )
    array = array[:count]
    params: dict[str, Any] = {"prompt": array}
    if kind == "prefix":
        # [n, layers, keys or values, K, H]
        each = array.reshape(count, config.layers, 2, heads, config.H)
        known, params = sites(config), {}
        for target in targets:
            one = each[:, _rows(known[target], config), int(target.endswith("v"))].swapaxes(0, 1)
            params[f"{target}/virtual"] = one if known[target].stack else one[0]
    return Adapter(
        kind,
        tree.unflatten(params),
        targets=targets,
        num_virtual=count,
        base=about.get("base_model_name_or_path"),
    )


def virtual_tensors(
    adapter: Adapter, config: ModelConfig, task: str | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (tensors, adapter_config.json) of an adapter, as PEFT has them."""
    _targets(adapter.kind, config)
    flat = {path: np.asarray(x) for path, x in tree.flatten(adapter.params or {}).items()}
    count, width = adapter.num_virtual, config.K * config.H
    array = flat.get("prompt")
    if array is None:
        known = sites(config)
        array = np.zeros((count, config.layers, 2, config.K, config.H), np.float32)
        for path in adapter.targets:
            one = flat[f"{path}/virtual"]
            one = one.swapaxes(0, 1) if known[path].stack else one[:, None]
            rows, side = _rows(known[path], config), int(path.endswith("v"))
            array[:, rows, side] = one
            if not np.array_equal(array[:, rows, side], one):
                raise ConfigError(
                    f"PEFT gives two layers of an encoder-decoder one prefix, and those of "
                    f"{path} differ; keep the run itself, or give lora"
                )
    prefix = adapter.kind == "prefix"
    about = {
        "peft_type": "PREFIX_TUNING" if prefix else "PROMPT_TUNING",
        # Without a task PEFT leaves the tokens out.
        "task_type": task or "FEATURE_EXTRACTION",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "num_virtual_tokens": count,
        "token_dim": width if prefix else config.towers.encoder_d_model or config.embed_width,
        # Both towers' prompts are one here; PEFT gives a prefix to the second of two.
        "num_transformer_submodules": 1 + (prefix and config.topology == "encoder_decoder"),
        "num_attention_heads": config.K if prefix else config.heads,
        "num_layers": config.layers,
    }
    return {TENSOR: array.reshape(count, -1)}, about


def _rows(site: Site, config: ModelConfig) -> list[int]:
    """Return where PEFT has the prefix of each layer: of two towers it takes every second one."""
    step = 2 if config.topology == "encoder_decoder" else 1
    return [step * layer % config.layers for layer in site.layers]


def _targets(kind: str, config: ModelConfig) -> tuple[str, ...]:
    """Return the paths that a prefix stands beside; ConfigError where PEFT takes it otherwise."""
    if kind == "prefix":
        return virtual.key_paths(config, kind)
    if config.embed.scale != "one":
        raise ConfigError(
            f"embed.scale={config.embed.scale}: whether a prompt is scaled as well differs from "
            f"model to model in PEFT; give a prefix, or lora"
        )
    if config.topology == "decoder":
        virtual.key_paths(config, kind)  # which refuses what has none
    return ()
