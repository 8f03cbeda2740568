"""Adapters on disk, of our own runs and of PEFT, and the models that they stand beside."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgen import files, settings, settings_yaml, tree
from jaxgen.adapters import adapter as adapters
from jaxgen.adapters import virtual
from jaxgen.adapters.adapter import Adapter
from jaxgen.adapters.base import check_base
from jaxgen.adapters.settings import AdapterSettings
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models import api
from jaxgen.models.families import FAMILIES
from jaxgen.models.families.family import Family
from jaxgen.pretrained import hub_read, hub_write, peft_read, sources
from jaxgen.pretrained.gguf_read import is_gguf
from jaxgen.pretrained.peft_write import write_adapter
from jaxgen.store import Checkpoints
from jaxgen.store.steps import CHECKPOINTS, run_and_step

CONFIG, ENVIRONMENT = "config.yaml", "env.json"
MAX_ENVIRONMENT = 16 << 20
TABLES = ("embed/positions", "encoder/embed/positions")  # cut where the context is shorter


class Word(NamedTuple):
    """An adapter as a user names it, and the factor of what its low ranks add."""

    folder: Path
    scale: float = 1.0


Words = str | os.PathLike | Word | Sequence[str | os.PathLike | Word]


def words_of(adapter: Words) -> tuple[Word, ...]:
    """Return the adapters that an argument names: PATH or PATH=SCALE, one or several.

    Raises ConfigError for a scale that is no number, and for a folder without an adapter.
    """
    if isinstance(adapter, str | os.PathLike | Word):
        adapter = (adapter,)
    return tuple(one if isinstance(one, Word) else _word(os.fspath(one)) for one in adapter)


def _word(word: str) -> Word:
    name, scale = word, 1.0
    if "=" in word and not os.path.lexists(word):
        name, _, text = word.rpartition("=")
        try:
            scale = float(text)
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            raise ConfigError(f"adapter {word}: {text!r} is no scale; write {name}=0.5, or {name}")
    folder = run_and_step(sources.local_path(name))[0]
    if not peft_read.is_peft(folder) and source_of(folder) is None:
        raise ConfigError(
            f"adapter {name} is neither a folder of PEFT ({peft_read.CONFIG}) nor a run with "
            f"adapter.kind; a model as a whole comes first, as MODEL"
        )
    return Word(sources.local_path(name), scale)


def resolved(path: Path, adapter: Words) -> tuple[Path, tuple[Word, ...]]:
    """Return (a model, its adapters), where the path itself may be an adapter of PEFT.

    Raises ConfigError if that names no base that is found here.
    """
    words = words_of(adapter)
    if not (path.is_dir() and peft_read.is_peft(path)) or hub_read.is_hub(path):
        return path, words
    base = peft_read.base_of(path)
    found = None if base is None else sources.find(base)
    if found is None:
        raise ConfigError(
            f"{path} is an adapter, and its base ({base}) is not found here; give the base as the "
            f"model, and --adapter {path}"
        )
    return found, (Word(path), *words)


def attached(config: ModelConfig, params: Any, path: Path, words: Sequence[Word]) -> Any:
    """Return the parameters of the model at a path, with adapters around them.

    Raises CheckpointError for one of another base, ConfigError for several that don't go together.
    """
    before: list[tuple[Word, Adapter]] = []
    for word in words:
        adapter = read_for(word.folder, config, path)
        check_base(adapter, params, str(word.folder))
        for other, known in before:
            alone = {adapter.kind, known.kind} & {"dora", *virtual.KINDS}
            if alone or set(adapter.saved) & set(known.saved):
                raise ConfigError(
                    f"adapters {other.folder} and {word.folder} don't add up: DoRA, virtual tokens "
                    f"and parameters saved whole stand alone; merge one of them first"
                )
        if adapter.kind not in ("lora", "dora") and word.scale != 1:
            raise ConfigError(
                f"adapter {word.folder} is of kind={adapter.kind}, which has no scale; leave it out"
            )
        before.append((word, adapter))
        params = adapters.attach(params, adapter, config, scale=word.scale)
    return params


def write_peft(path: Path, target: Path) -> Adapter:
    """Write the adapter of a run, or of one of its checkpoints, as a folder of PEFT; return it."""
    home = run_and_step(path)[0]
    base = source_of(home)
    assert base is not None
    config = settings.build(
        ModelConfig, settings_yaml.read_yaml(home / CONFIG).get("model", {}), "model"
    )
    adapter = read_for(path, config, base)
    family = _hub_family(base, config)
    if is_gguf(base):
        adapter = replace(adapter, base=sources.hub_name(base))
    with files.new_folder(target) as draft:
        write_adapter(draft, adapter, family, config)
    return adapter


def read_for(folder: Path, config: ModelConfig, path: Path) -> Adapter:
    """Return an adapter of PEFT, or of a run, for the model at a path; see `attached`."""
    home, step = run_and_step(folder)
    if not peft_read.is_peft(home):
        checkpoints = Checkpoints(home / CHECKPOINTS, keep_last=1, keep_best=0, fingerprints={})
        return read_adapter(home, config, checkpoints.read(step)["params"])
    model = run_and_step(path)[0]
    return peft_read.read_adapter(home, _hub_family(model, config), config)


def _hub_family(model: Path, config: ModelConfig) -> Family:
    """Return the family by whose names PEFT knows the weights of a model."""
    if is_gguf(model):
        return FAMILIES[hub_read.read_config(model)[0].model_type]
    return (
        hub_read.read_config(model)[0] if hub_read.is_hub(model) else hub_write.family_of(config)[0]
    )


def source_of(folder: Path) -> Path | None:
    """Return the model that a run's adapter stands beside; None for a run without one."""
    path = folder / CONFIG
    mapping = settings_yaml.read_yaml(path) if path.exists() else {}
    if (mapping.get("adapter") or {}).get("kind", "none") == "none":
        return None
    return files.to_path(mapping["init_from"])


def settings_of(folder: Path) -> AdapterSettings:
    """Return the settings of the adapter of a run."""
    mapping = settings_yaml.read_yaml(folder / CONFIG)
    return settings.build(AdapterSettings, mapping["adapter"], "adapter")


def read_adapter(folder: Path, config: ModelConfig, params: Any) -> Adapter:
    """Return the adapter of a run, with the numbers of one of its checkpoints."""
    mapping, wanted = settings_yaml.read_yaml(folder / CONFIG), settings_of(folder)
    about = files.read_json(folder / ENVIRONMENT, "record of a run", MAX_ENVIRONMENT)
    source = about.get("init_from") or {}
    adapter = adapters.plan(wanted, config)
    shapes = {p: x.shape for p, x in tree.flatten(adapters.abstract(adapter, config)).items()}
    found = {path: leaf.shape for path, leaf in tree.flatten(params).items()}
    if wrong := sorted(
        path for path in shapes.keys() | found.keys() if shapes.get(path) != found.get(path)
    ):
        raise CheckpointError(
            f"{folder} is an adapter of another base: {wrong[0]} is "
            f"{found.get(wrong[0], 'absent')} there, not {shapes.get(wrong[0], 'anything')}"
        )
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
    check_base(adapter, params, str(name))
    return params
