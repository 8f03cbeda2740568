"""A model on disk: a run folder, one of its checkpoints, or a folder written by `save`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import settings, settings_yaml, tree
from jaxgen.config import ModelConfig
from jaxgen.errors import BusyError, CheckpointError, ConfigError, UserError
from jaxgen.models import api
from jaxgen.store import Checkpoints
from jaxgen.tokens import Tokenizer
from jaxgen.tokens import load as load_tokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"


def load(path: str | os.PathLike, *, step: int | None = None) -> tuple[ModelConfig, api.Params]:
    """Return (config, params) from a run (its newest sound checkpoint) or a `save`d folder.

    step: a certain checkpoint of a run. Raises ConfigError if there is no such folder,
    CheckpointError if it holds no model, or one whose files are damaged or don't fit the config.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a run or a folder made by jaxgen.save")
    config = read_config(folder)
    if (folder / WEIGHTS).exists():
        params = _read_weights(folder / WEIGHTS)
    else:
        checkpoints = Checkpoints(folder / "checkpoints", keep_last=1, keep_best=0, fingerprints={})
        params = checkpoints.read(step)["params"]
    _check_shapes(folder, params, config)
    return config, params


def read_config(folder: Path) -> ModelConfig:
    """Return the model section of the folder's config.yaml; CheckpointError if it is no model."""
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
    if not (folder / "tokenizer").is_dir():
        raise CheckpointError(f"{folder} has no tokenizer/; text needs one, token ids do not")
    return load_tokenizer(folder / "tokenizer")


def save(
    path: str | os.PathLike,
    config: ModelConfig,
    params: api.Params,
    *,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write config, params and (if given) tokenizer as a folder that `load` reads.

    Weights are one safetensors file under our own paths; the folder appears whole or not at all.
    Raises ConfigError if the path exists already, BusyError if it can't be written.
    """
    from safetensors.numpy import save_file

    folder = Path(path)
    if folder.exists():
        raise ConfigError(f"{folder} exists already; give a new folder")
    _check_shapes(folder, params, config)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as name:
            whole = Path(name) / "model"
            whole.mkdir()
            flat = {p: np.asarray(leaf) for p, leaf in tree.flatten(params).items()}
            save_file(flat, whole / WEIGHTS, metadata={"format": "jaxgen"})
            text = settings_yaml.write({"model": settings.as_dict(config)})
            (whole / CONFIG).write_text(text, encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save(whole / "tokenizer")
            whole.rename(folder)
    except OSError as error:
        raise BusyError(f"{folder}: {error.strerror or error}; nothing was written") from error


def _read_weights(path: Path) -> api.Params:
    import jax.numpy as jnp
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        flat: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    return tree.unflatten({name: jnp.asarray(leaf) for name, leaf in flat.items()})


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
