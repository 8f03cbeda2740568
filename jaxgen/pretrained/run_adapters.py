"""Adapters in our own runs, whose checkpoints hold no more than that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxgen import files, settings, settings_yaml, tree
from jaxgen.adapters import adapter as adapters
from jaxgen.adapters.adapter import Adapter
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models import api

CONFIG, ENVIRONMENT = "config.yaml", "env.json"
MAX_ENVIRONMENT = 16 << 20
TABLES = ("embed/positions", "encoder/embed/positions")  # cut where the context is shorter


def source_of(folder: Path) -> Path | None:
    """Return the model that a run's adapter stands beside; None for a run without one."""
    path = folder / CONFIG
    mapping = settings_yaml.read_yaml(path) if path.exists() else {}
    if (mapping.get("adapter") or {}).get("kind", "none") == "none":
        return None
    return Path(mapping["init_from"])


def read_adapter(folder: Path, config: ModelConfig, params: Any) -> Adapter:
    """Return the adapter of a run, with the numbers of one of its checkpoints."""
    mapping = settings_yaml.read_yaml(folder / CONFIG)
    wanted = settings.build(AdapterSettings, mapping["adapter"], "adapter")
    about = files.read_json(folder / ENVIRONMENT, "record of a run", MAX_ENVIRONMENT)
    source = about.get("init_from") or {}
    adapter = adapters.plan(wanted, config)
    shapes = {p: x.shape for p, x in tree.flatten(adapters.abstract(adapter, config)).items()}
    found = {path: leaf.shape for path, leaf in tree.flatten(params).items()}
    if wrong := sorted(
        path for path in shapes.keys() | found.keys() if shapes.get(path) != found.get(path)
    ):
        raise CheckpointError(f"{folder}: its checkpoint has another adapter at {wrong[0]}")
    base, digest = mapping.get("init_from"), source.get("fingerprint")
    return replace(adapter, params=params, base=base, digest=digest)


def beneath(params: Any, adapter: Adapter, config: ModelConfig, name: Path) -> Any:
    """Return the parameters of a base for a model of this config, whose adapter it is.

    Raises CheckpointError if it is another base.
    """
    flat, result = tree.flatten(params), {}
    for path, leaf in tree.flatten(api.abstract(config)).items():
        own = flat.get(path)
        if path in adapter.saved:  # its numbers are the adapter's
            own = jnp.zeros(leaf.shape, leaf.dtype)
        elif own is not None and path in TABLES:
            own = own[: leaf.shape[0]]
        shape = getattr(own, "shape", leaf.shape)
        if own is None or tuple(shape) != tuple(leaf.shape):
            raise CheckpointError(
                f"{name} is an adapter of another base: {path} is "
                f"{'absent' if own is None else list(shape)} there, not {list(leaf.shape)}"
            )
        result[path] = own.astype(leaf.dtype) if hasattr(own, "astype") else own
    params = tree.unflatten(result)
    adapters.check_base(adapter, params, str(name))
    return params
