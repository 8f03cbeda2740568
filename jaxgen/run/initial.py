"""Where a run's weights begin: drawn, or those of a Hugging Face folder or another run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import files, tree
from jaxgen import settings as sets
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models import api
from jaxgen.pretrained import assets, hub_read, sources
from jaxgen.pretrained import model as models
from jaxgen.pretrained.languages import read_languages
from jaxgen.tokens.protocol import Tokenizer

HEADS = ("head", "unembed")  # what another task may have new, or leave behind
TABLES = ("embed/positions", "encoder/embed/positions")  # cut where the context is shorter
# What an upcycled model has that a dense one has not, and which letters the rest has.
ROUTER = ("router", "router_bias", "choice_bias")
EXPERT_AXES = {"up": "EDF", "gate": "EDF", "down": "EFD"}
EXPERT_AXES |= {"up_bias": "EF", "gate_bias": "EF", "down_bias": "ED"}
SHOWN = 6


@dataclass(frozen=True)
class Initial:
    """Parameters to begin with: those of the folder; what is missing of them is drawn.

    grown: those with more rows than in the folder, for a larger vocabulary. beyond: what to know
    of a context that the folder's model has not been trained with, or nothing.
    """

    params: Mapping[str, np.ndarray]  # by path
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    digest: str
    grown: tuple[str, ...] = ()
    beyond: str = ""

    def told(self, folder: Path) -> str:
        """Return a line that says what comes from where."""
        parts = [f"weights of {folder}: {len(self.params)} parameters"]
        parts += [f"{word} {', '.join(names)}" for word, names in
                  (("drawn anew:", self.fresh), ("left behind:", self.left),
                   ("new rows at the mean of the old ones:", self.grown)) if names]  # fmt: skip
        return "; ".join([*parts, self.beyond] if self.beyond else parts)


def fields(folder: Path) -> dict[str, Any]:
    """Return the `model` section of a folder's model; ConfigError if there is none there.

    In which type the folder keeps its numbers is no wish to train in it: that is left out.
    """
    _check_folder(folder)
    found = sets.as_dict(models.read_config(folder))
    return {name: value for name, value in found.items() if name != "param_dtype"}


def context_within(folder: Path, most: int) -> int:
    """Return a context for a run that begins with a folder: `most`, or its own if that is less."""
    return min(most, models.read_config(folder).context) if folder.exists() else most


def tokenizer_of(folder: Path) -> Tokenizer:
    """Return the folder's tokenizer; ConfigError if it has none."""
    _check_folder(folder)
    if not assets.has_tokenizer(folder):
        raise ConfigError(
            f"init_from={folder} has no tokenizer; give tokenizer.kind=file and tokenizer.file"
        )
    tokenizer = assets.read_tokenizer(folder)
    if read_languages(folder, tokenizer) is not None:
        warnings.warn(
            f"init_from={folder}: its texts begin or end with tokens of their languages, which "
            f"training does not add: what is trained will not follow `translate --from --to`",
            stacklevel=2,
        )
    return tokenizer


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if a tokenizer gives other ids than the one the weights know.

    It may have pieces of its own besides those.
    """
    if not assets.has_tokenizer(folder):
        return
    own = assets.read_tokenizer(folder)
    known, given = _pieces(own), _pieces(tokenizer)
    added = isinstance(known, dict) and isinstance(given, dict) and known.items() <= given.items()
    if known != given and not added:
        raise ConfigError(
            f"the tokenizer of {tokenizer.vocab_size} ids is not that of init_from={folder} "
            f"({own.vocab_size} ids), nor that with pieces added; the weights know no other: leave "
            f"out the tokenizer section"
        )


def vocabulary(folder: Path, wanted: int | None, needed: int) -> int:
    """Return model.vocab_size of a run that begins with a folder: its own, or a larger one.

    wanted: that of the settings, None or the folder's own if they don't say; needed: ids that its
    text may have. Raises ConfigError for fewer rows than the folder has.
    """
    own = models.read_config(folder).V
    if wanted is not None and wanted < own:
        raise ConfigError(
            f"model.vocab_size={wanted} is smaller than the {own} of init_from={folder}, whose "
            f"last rows would be lost; leave it out, or give {own} or more"
        )
    return max(own, needed) if wanted in (None, own) else wanted


def load(folder: Path, config: ModelConfig, wanted: Mapping[str, Any]) -> Initial:
    """Return the folder's parameters for a model of this config, on the host or one device.

    wanted: {path: shape and dtype} of that model. Heads may be new or stay behind, tables of
    learned positions be cut to a shorter context, and those of tokens have more rows: these begin
    at the mean of the others, as in transformers. Experts begin as copies of a dense model's
    feed-forward (`upcycled`). Raises CheckpointError that names what else differs, or is damaged.
    """
    _check_folder(folder)
    if hub_read.is_hub(folder):
        _, params = models.load(folder, dtype=config.param_dtype)
    else:
        _, params = models.load(folder)
    found = upcycled(tree.flatten(params), wanted)
    fresh, left = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    router = [path for path in fresh if path.rpartition("/")[2] in ROUTER]
    was_dense = not any("/experts/" in path for path in tree.flatten(params))
    drawn = (*HEADS, *(router if was_dense else ()))
    wrong = [f"{path} is missing" for path in sorted(fresh) if not path.startswith(drawn)]
    wrong += [f"{path} is not in the model" for path in sorted(left) if not path.startswith(HEADS)]
    kept, grown, axes = {}, [], tree.flatten(api.axes(config))
    for path in sorted(wanted.keys() & found.keys()):
        leaf, shape = found[path], tuple(wanted[path].shape)
        if path in TABLES and leaf.shape[0] > shape[0] and leaf.shape[1:] == shape[1:]:
            leaf = leaf[: shape[0]]
        if axes[path][:1] == "V" and leaf.shape[0] < shape[0] and leaf.shape[1:] == shape[1:]:
            grown.append(f"{path} from {leaf.shape[0]} to {shape[0]}")
            leaf = _grow(np.asarray(leaf), shape[0])
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
    about = tuple(sorted(fresh)), tuple(sorted(left)), _digest(kept), tuple(grown)
    own = models.read_config(folder).context
    beyond = f"model.context={config.context} is more than the {own} it was trained with"
    return Initial(kept, *about, beyond if config.context > own else "")


def upcycled(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the folder's parameters with its feed-forward in each expert that the model has.

    Sparse upcycling (Komatsuzaki et al. 2022): the router is drawn, so experts, equal at first,
    part as they see other tokens.
    """
    result = dict(found)
    for path in found:
        home, feed, name = path.rpartition("/feed/")
        new = wanted.get(f"{home}/experts/{name}")
        if not feed or path in wanted or new is None:
            continue
        axis = len(new.shape) - len(EXPERT_AXES[name])
        result[f"{home}/experts/{name}"] = np.repeat(
            np.expand_dims(np.asarray(result.pop(path)), axis), new.shape[axis], axis
        )
    return result


def _grow(table: np.ndarray, rows: int) -> np.ndarray:
    """Return the table with more rows, each the mean of those it has."""
    mean = table.astype(np.float32).mean(axis=0, keepdims=True).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, rows - len(table), axis=0)])


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
    if not folder.is_dir() and not hub_read.is_hub(folder):
        raise ConfigError(
            f"init_from={folder}: no such folder"
            f"{sources.advice(folder, 'init_from={}') or f'; {sources.REMEDIES}'}"
        )
