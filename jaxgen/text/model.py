"""A model on disk: a run folder, one of its checkpoints, or a folder written by `save`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgen import files, settings, settings_yaml, tree
from jaxgen.config import DType, ModelConfig
from jaxgen.errors import CheckpointError, ConfigError, UserError
from jaxgen.mesh.place import laid
from jaxgen.models import api
from jaxgen.store import Checkpoints, safetensors
from jaxgen.text import hub_export, hub_folder
from jaxgen.text import template as templates
from jaxgen.text import usage as usages
from jaxgen.text.template import Template
from jaxgen.text.usage import Usage
from jaxgen.tokens import Tokenizer
from jaxgen.tokens import load as load_tokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
Layout = Literal["jaxgen", "hf"]


class Manners(NamedTuple):
    """What a folder holds besides the model; lost: what it says of generation that is not kept."""

    tokenizer: Tokenizer | None
    usage: Usage
    template: Template | None
    lost: tuple[str, ...]


def manners_of(folder: Path) -> Manners:
    """Return tokenizer, usage and chat template of a folder; CheckpointError if one is damaged."""
    usage, lost = usages.read(folder)
    return Manners(
        tokenizer_of(folder) if has_tokenizer(folder) else None,
        usage,
        templates.read(folder) if templates.has_template(folder) else None,
        lost,
    )


def load(
    path: str | os.PathLike,
    *,
    step: int | None = None,
    dtype: DType | None = None,
    shardings: Mapping[str, Any] | None = None,
    nonfinite: hub_folder.NonFinite = "refuse",
) -> tuple[ModelConfig, api.Params]:
    """Return (config, params) from a run (its newest sound checkpoint), a `save`d or an HF folder.

    step: a certain checkpoint of a run. The others are for a Hugging Face folder, whose tensors are
    read one by one: dtype: to convert to; None keeps what is stored. shardings: a tree like the
    params, to place each on its devices. nonfinite: whether NaN and infinity are taken.
    Raises ConfigError if there is no such folder, CheckpointError if it holds no model, or one
    whose files are damaged or don't fit the config.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a run, a saved or a Hugging Face model")
    if is_hub(folder):
        if step is not None:
            raise ConfigError(f"step={step} but {folder} is no run: it has no checkpoints")
        hub_folder.refuse_dtype(dtype)
        return hub_folder.load(folder, dtype=dtype, shardings=shardings, nonfinite=nonfinite)
    if dtype is not None or shardings is not None:
        raise ConfigError(f"dtype= and shardings= are for Hugging Face folders; {folder} is none")
    config = read_config(folder)
    if (folder / WEIGHTS).exists():
        params = _read_weights(folder / WEIGHTS)
    else:
        checkpoints = Checkpoints(folder / "checkpoints", keep_last=1, keep_best=0, fingerprints={})
        params = checkpoints.read(step)["params"]
    _check_shapes(folder, params, config)
    return config, params


def is_hub(folder: Path) -> bool:
    """Return whether a folder is in the Hugging Face layout and no run of ours."""
    return hub_folder.is_hub(folder) and not (folder / CONFIG).exists()


def read_config(folder: Path) -> ModelConfig:
    """Return the model section of the folder's config.yaml; CheckpointError if it is no model."""
    if is_hub(folder):
        return hub_folder.read_config(folder)[1]
    path = folder / CONFIG
    has_weights = (folder / WEIGHTS).exists() or (folder / "checkpoints").is_dir()
    if not path.exists() or not has_weights:
        raise CheckpointError(
            f"{folder} is no run: it lacks {CONFIG if has_weights else 'checkpoints/'}; "
            f"`jaxgen train CONFIG.yaml --out {folder}` makes one"
        )
    try:
        mapping = settings_yaml.read(path)
        return settings.build(ModelConfig, mapping.get("model", {}), "model")
    except UserError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def tokenizer_of(folder: Path) -> Tokenizer:
    """Return the tokenizer kept in a run or saved folder; CheckpointError if there is none."""
    if is_hub(folder):
        return hub_folder.tokenizer_of(folder)
    if not (folder / "tokenizer").is_dir():
        raise CheckpointError(f"{folder} has no tokenizer/; text needs one, token ids do not")
    return load_tokenizer(folder / "tokenizer")


def save(
    path: str | os.PathLike,
    config: ModelConfig,
    params: api.Params,
    *,
    tokenizer: Tokenizer | None = None,
    usage: Usage | None = None,
    template: Template | None = None,
    layout: Layout = "jaxgen",
    family: str | None = None,
) -> None:
    """Write config, params and (if given) tokenizer as a folder that `load` reads.

    usage: ids to start and stop with, sampling, names of classes (`text.usage.read`). template:
    that of chats (`text.template.read`).
    layout: "jaxgen" keeps our own paths in one safetensors file; "hf" is what transformers opens,
    as the model_type `family`, or the first that can say all of the config. The folder appears
    whole or not at all. Raises ConfigError if the path exists already or no family has such a
    model, BusyError if it can't be written.
    """
    folder = Path(path)
    check_new(folder)
    _check_shapes(folder, params, config)
    usage = usage or Usage()
    if usage.labels and len(usage.labels) != config.classes:
        usage = replace(usage, labels=())
    if layout == "hf":
        hub_export.family_of(config, family)
    with files.new_folder(folder) as draft:
        if layout == "hf":
            hub_export.write(
                draft, config, params, tokenizer=tokenizer, usage=usage, model_type=family
            )
            if template is not None:
                hub_export.write_template(draft, template)
            return
        flat = tree.flatten(params)
        shapes = {name: (leaf.dtype.name, tuple(leaf.shape)) for name, leaf in flat.items()}
        about = {"format": "jaxgen"}
        safetensors.write(draft / WEIGHTS, shapes, lambda name: np.asarray(flat[name]), about)
        files.write(draft / CONFIG, settings_yaml.write({"model": settings.as_dict(config)}))
        usages.write(draft, usage)
        if template is not None:
            templates.write(draft, template)
        if tokenizer is not None:
            tokenizer.save(draft / "tokenizer")


def check_new(folder: Path) -> None:
    """Raise ConfigError unless a model can be written there: it is absent, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; give a new folder")


def has_tokenizer(folder: Path) -> bool:
    """Return whether `tokenizer_of` has something to read."""
    if is_hub(folder):
        return hub_folder.has_tokenizer(folder)
    return (folder / "tokenizer").is_dir()


def _read_weights(path: Path) -> api.Params:
    import jax

    found = safetensors.open_file(path)
    flat = {name: jax.device_put(laid(safetensors.read(t))) for name, t in found.items()}
    return tree.unflatten(flat)


def _check_shapes(folder: Path, params: api.Params, config: ModelConfig) -> None:
    wanted = {p: leaf.shape for p, leaf in tree.flatten(api.abstract(config)).items()}
    found = {p: leaf.shape for p, leaf in tree.flatten(params).items()}
    wrong = [
        f"{path}: {found.get(path, 'absent')} instead of {wanted.get(path, 'nothing')}"
        for path in sorted(wanted.keys() | found.keys())
        if wanted.get(path) != found.get(path)
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(f"{folder}: params don't fit config: {'; '.join(wrong[:3])}{more}")
