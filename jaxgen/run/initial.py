"""Where a run's weights begin: drawn, or those of a Hugging Face folder or another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files, tree
from jaxgen import settings as sets
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError, hub_advice
from jaxgen.pretrained import assets, hub_read
from jaxgen.pretrained import model as models
from jaxgen.tokens.protocol import Tokenizer

HEADS = ("head", "unembed")  # what another task may have new, or leave behind
TABLES = ("embed/positions", "encoder/embed/positions")  # cut where the context is shorter
SHOWN = 6


@dataclass(frozen=True)
class Initial:
    """Parameters to begin with: those of the folder; what is missing of them is drawn."""

    params: Mapping[str, np.ndarray]  # by path
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    digest: str

    def told(self, folder: Path) -> str:
        """Return a line that says what comes from where."""
        parts = [f"weights of {folder}: {len(self.params)} parameters"]
        parts += [f"{word} {', '.join(names)}" for word, names in
                  (("drawn anew:", self.fresh), ("left behind:", self.left)) if names]  # fmt: skip
        return "; ".join(parts)


def fields(folder: Path) -> dict[str, Any]:
    """Return the `model` section of a folder's model; ConfigError if there is none there.

    In which type the folder keeps its numbers is no wish to train in it: that is left out.
    """
    _check_folder(folder)
    found = sets.as_dict(models.read_config(folder))
    return {name: value for name, value in found.items() if name != "param_dtype"}


def tokenizer_of(folder: Path) -> Tokenizer:
    """Return the folder's tokenizer; ConfigError if it has none."""
    _check_folder(folder)
    if not assets.has_tokenizer(folder):
        raise ConfigError(
            f"init_from={folder} has no tokenizer; give tokenizer.kind=file and tokenizer.file"
        )
    return assets.read_tokenizer(folder)


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if a tokenizer gives other ids than the one the weights know."""
    if not assets.has_tokenizer(folder):
        return
    own = assets.read_tokenizer(folder)
    if _pieces(own) != _pieces(tokenizer):
        raise ConfigError(
            f"the tokenizer of {tokenizer.vocab_size} ids is not that of init_from={folder} "
            f"({own.vocab_size} ids), whose weights know no other; leave out the tokenizer section"
        )


def load(folder: Path, config: ModelConfig, wanted: Mapping[str, Any]) -> Initial:
    """Return the folder's parameters for a model of this config, on the host or one device.

    wanted: {path: shape and dtype} of that model. Heads may be new or stay behind, and tables of
    learned positions be cut to a shorter context. Raises CheckpointError that names what else
    differs, or is damaged.
    """
    _check_folder(folder)
    if hub_read.is_hub(folder):
        _, params = models.load(folder, dtype=config.param_dtype)
    else:
        _, params = models.load(folder)
    found = tree.flatten(params)
    fresh, left = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    wrong = [f"{path} is missing" for path in sorted(fresh) if not path.startswith(HEADS)]
    wrong += [f"{path} is not in the model" for path in sorted(left) if not path.startswith(HEADS)]
    kept = {}
    for path in sorted(wanted.keys() & found.keys()):
        leaf, shape = found[path], tuple(wanted[path].shape)
        if path in TABLES and leaf.shape[0] > shape[0] and leaf.shape[1:] == shape[1:]:
            leaf = leaf[: shape[0]]
        if leaf.shape != shape and path.startswith("head/"):
            fresh, left = {*fresh, path}, {*left, path}
        elif leaf.shape != shape:
            wrong.append(f"{path} is {list(leaf.shape)} there, {list(shape)} here")
        else:
            # On the host: the compiled beginning puts each where it lives.
            kept[path] = np.asarray(leaf.astype(wanted[path].dtype))
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CheckpointError(
            f"init_from={folder} does not fit the model: {'; '.join(wrong[:SHOWN])}{more}"
        )
    return Initial(kept, tuple(sorted(fresh)), tuple(sorted(left)), _digest(kept))


def record(path: Path, initial: Initial, folder: Path) -> None:
    """Write into env.json where the weights come from; CheckpointError if others were there."""
    about = json.loads(path.read_bytes())
    before = about.get("init_from")
    if before is not None and before["sha256"] != initial.digest:
        raise CheckpointError(
            f"{folder} holds other weights than when the run began, which has no checkpoint yet; "
            f"restore them, or begin a new run"
        )
    files.write_json(path, about | {"init_from": {"folder": str(folder), "sha256": initial.digest}})


def _digest(params: Mapping[str, Any]) -> str:
    result = sha256()
    for path, leaf in params.items():
        result.update(path.encode())
        result.update(np.ascontiguousarray(leaf).tobytes())
    return result.hexdigest()


def _pieces(tokenizer: Tokenizer) -> Any:
    listed = getattr(tokenizer, "vocabulary", None)
    return listed() if listed else tokenizer.fingerprint


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"init_from={folder}: no such folder; give a Hugging Face model or one of our runs"
            f"{hub_advice(str(folder), 'init_from={}')}"
        )
