"""Traditional generators on disk: what they are in a JSON file, their arrays in safetensors."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen import files, settings, tree
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError, UserError, nearest
from jaxgen.models.classic.maxent import MaxEnt
from jaxgen.models.classic.ngram import NGram
from jaxgen.models.classic.template import Template
from jaxgen.models.classic.vae import VAE
from jaxgen.store import safetensors
from jaxgen.tokens import Tokenizer

KINDS: dict[str, Any] = {
    "ngram": NGram,
    "template": Template,
    "maxent": MaxEnt,
    "vae": VAE,
    "hmm": None,  # its arrays say all there is
}
ABOUT, ARRAYS = "generator.json", "generator.safetensors"
FORMAT = 1


def save_generator(
    path: str | os.PathLike,
    kind: str,
    config: Any,
    params: Any,
    *,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a generator of KINDS, and its tokenizer if given, as a folder that `load` reads.

    config: of the kind's type, None for an hmm. The folder appears whole or not at all. Raises
    ConfigError for another kind or config, or a path that exists already.
    """
    folder = Path(path)
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r} is unknown{nearest(kind, KINDS)}")
    if not isinstance(config, KINDS[kind] or type(None)):
        raise ConfigError(f"kind={kind} has no config {type(config).__name__}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; give a new folder")
    flat = {name: np.asarray(leaf) for name, leaf in tree.flatten(params).items()}
    shapes = {name: (leaf.dtype.name, tuple(leaf.shape)) for name, leaf in flat.items()}
    about = {"format": FORMAT, "kind": kind, "config": _as_dict(config)}
    with files.new_folder(folder) as draft:
        safetensors.write_safetensors(
            draft / ARRAYS, shapes, lambda name: flat[name], {"format": "jaxgen"}
        )
        files.write_json(draft / ABOUT, about)
        if tokenizer is not None:
            tokenizer.save(draft / "tokenizer")


def load_generator(path: str | os.PathLike) -> tuple[str, Any, Any]:
    """Return (kind, config, params) of a saved generator.

    Raises CheckpointError for a folder that holds none, a damaged or a newer one.
    """
    folder = Path(path)
    raw = files.read_artifact(folder / ABOUT, "saved generator", 1 << 20)
    try:
        about = json.loads(raw)
        newer, kind = about["format"] > FORMAT, about["kind"]
        if newer:
            raise CheckpointError(
                f"{folder} has format {about['format']}, this jaxgen reads {FORMAT}; update it"
            )
        config = _built(kind, about["config"])
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder / ABOUT} is damaged: {error}") from error
    tensors = safetensors.open_file(folder / ARRAYS)
    flat = {name: jnp.asarray(safetensors.read_tensor(tensor)) for name, tensor in tensors.items()}
    return kind, config, tree.unflatten(flat)


def _as_dict(config: Any) -> dict[str, Any] | None:
    if config is None:
        return None
    mapping = {field.name: getattr(config, field.name) for field in fields(config)}
    if isinstance(config, VAE):
        mapping["model"] = settings.as_dict(config.model)
    return mapping


def _built(kind: str, mapping: dict[str, Any] | None) -> Any:
    if kind not in KINDS:
        raise CheckpointError(f"the kind {kind!r} of generator is unknown{nearest(kind, KINDS)}")
    if KINDS[kind] is None:
        return None
    mapping = dict(mapping or {})
    if kind == "vae":
        mapping["model"] = settings.build(ModelConfig, mapping["model"], "model")
    return KINDS[kind](**mapping)
