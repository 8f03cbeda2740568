"""Where a run's weights begin: drawn, or those of a Hugging Face folder or another run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgen import files, tree
from jaxgen import settings as sets
from jaxgen.adapters.base import fingerprint
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.models import api
from jaxgen.pretrained import assets, hub_read, hub_write, sources
from jaxgen.pretrained import model as models
from jaxgen.pretrained.languages import read_languages
from jaxgen.run import upcycling
from jaxgen.tokens.protocol import Tokenizer
from jaxgen.train.display import short

HEADS = ("head", "unembed")  # what another task may have new, or leave behind
TABLES = ("embed/positions", "encoder/embed/positions")  # cut where the context is shorter
SHOWN = 6
UNTOLD = ("vocab_size", "param_dtype", "compute_dtype")  # is told elsewhere, or changes no result
Fit = Literal["keep", "draw", "cut", "grow"]  # how a parameter comes into its shape


@dataclass(frozen=True)
class Initial:
    """Parameters to begin with: those of the folder; what is missing of them is drawn.

    grown: those with more rows than in the folder, for a larger vocabulary. changed: settings of
    the model that the folder has otherwise.
    """

    params: Mapping[str, np.ndarray]  # by path
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    digest: str
    grown: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def told(self, folder: Path) -> str:
        """Return a line that says what comes from where."""
        count = sum(leaf.size for leaf in self.params.values())
        parts = [f"weights of {folder}: {short(count)} parameters"]
        parts += [f"{word} {', '.join(names)}" for word, names in
                  (("drawn anew:", self.fresh), ("left behind:", self.left),
                   ("new rows at the mean of the old ones:", self.grown),
                   ("not as there:", self.changed)) if names]  # fmt: skip
        return "; ".join(parts)

    def check_beneath(self, saved: tuple[str, ...]) -> None:
        """Raise ConfigError if an adapter would leave drawn numbers as they are.

        saved: paths of the parameters that it holds whole.
        """
        drawn = (*self.fresh, *(words.split()[0] for words in self.grown))
        if left := [path for path in drawn if path not in saved]:
            raise ConfigError(
                f"{left[0]} is not in the model of init_from but drawn anew, and an adapter trains "
                f"no such weight; add adapter.save=[{left[0]!r}]"
            )


def fields(folder: Path, head: str | None = None) -> dict[str, Any]:
    """Return the `model` section of a folder's model; ConfigError if there is none there.

    head: another one than the folder's, with the layers before it that the family has there, and
    without the number of classes. In which type the folder keeps its numbers is no wish to train
    in it: that is left out.
    """
    _check_folder(folder)
    config, left_out = models.read_config(folder), {"param_dtype"}
    if head not in (None, config.head):
        left_out |= {"classes", "head"}
        config = _with_head(folder, config, str(head))
    return {k: v for k, v in sets.as_dict(config).items() if k not in left_out}


def _with_head(folder: Path, config: ModelConfig, head: str) -> ModelConfig:
    """Return a folder's config as its family has it with another head; as it is without family."""
    if hub_read.is_hub(folder):
        return hub_read.read_config(folder, head)[1]
    try:
        family, theirs = hub_write.family_of(config, None)
    except ConfigError:
        return config
    return replace(config, head_layer=family.read(family.as_head(theirs, head)).head_layer)


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


def load(folder: Path, config: ModelConfig, wanted: Mapping[str, Any], *, seed: int = 0) -> Initial:
    """Return the folder's parameters for a model of this config, on the host or one device.

    Heads may be new or stay behind, tables of learned positions be cut to a shorter context, and
    those of tokens have more rows: these begin at the mean of the others, as in transformers.
    Experts begin as a dense model's feed-forward (`upcycling`).

    Args:
        folder: of the weights, or an id of the hub.
        config: of the model that is to be.
        wanted: {path: shape and dtype} of that model.
        seed: of what `upcycling` draws.

    Raises:
        CheckpointError: naming the settings, or the parameters, that the weights do not fit, or
            what is damaged.
    """
    _check_folder(folder)
    if hub_read.is_hub(folder):
        hub_read.refuse_dtype(config.param_dtype)
        head = None if models.read_config(folder).head == config.head else config.head
        _, params = hub_read.load_hub(
            folder, dtype=config.param_dtype, shardings=None, nonfinite="refuse", head=head
        )
    else:
        _, params = models.load(folder)
    there, own = tree.flatten(params), models.read_config(folder)
    begun = upcycling.upcycle(there, wanted, config, seed)
    axes = tree.flatten(api.axes(config))
    drawn = () if own.experts.number else upcycling.ROUTER
    if wrong := _misfits(begun, wanted, axes, drawn):
        raise CheckpointError(
            f"init_from={folder} does not fit the model: {_why(own, config, wrong)}"
        )
    kept, grown, fresh, left = {}, [], wanted.keys() - begun.keys(), begun.keys() - wanted.keys()
    for path in sorted(wanted.keys() & begun.keys()):
        leaf, shape = begun[path], wanted[path].shape
        match _fit(path, leaf.shape, shape, axes[path]):
            case "cut":
                leaf = leaf[: shape[0]]
            case "grow":
                grown.append(f"{path} from {leaf.shape[0]} to {shape[0]}")
                leaf = _grow(np.asarray(leaf), shape[0])
            case "draw":
                fresh, left = {*fresh, path}, {*left, path}
                continue
        # On the host: the compiled beginning puts each where it lives.
        kept[path] = np.asarray(leaf.astype(wanted[path].dtype))
    digest = _digest({path: leaf for path, leaf in kept.items() if _name(path) not in drawn})
    about = tuple(sorted(fresh)), tuple(sorted(left)), digest, tuple(grown)
    changed = [_told(*row) for row in sets.diff(own, config) if row[0] not in UNTOLD]
    return Initial(kept, *about, tuple(changed))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _misfits(
    there: Mapping[str, Any],
    wanted: Mapping[str, Any],
    axes: Mapping[str, str],
    drawn: tuple[str, ...] = (),
) -> list[str]:
    """Return in words which parameters of the wanted shapes can't be had from those there.

    drawn: names of parameters that need not be there.
    """
    fresh, left = sorted(wanted.keys() - there.keys()), sorted(there.keys() - wanted.keys())
    wrong = [
        f"{path} is missing"
        for path in fresh
        if not path.startswith(HEADS) and _name(path) not in drawn
    ]
    wrong += [f"{path} is not in the model" for path in left if not path.startswith(HEADS)]
    for path in sorted(wanted.keys() & there.keys()):
        one, other = tuple(there[path].shape), tuple(wanted[path].shape)
        if _fit(path, one, other, axes[path]) is None:
            wrong.append(f"{path} is {list(one)} there, {list(other)} here")
    return wrong


def _fit(path: str, there: tuple[int, ...], here: tuple[int, ...], letters: str) -> Fit | None:
    """Return how a parameter gets from one shape into another; None if it can't."""
    if there == here:
        return "keep"
    if path.startswith("head/"):
        return "draw"
    if there[1:] != here[1:]:
        return None
    if path in TABLES and there[0] > here[0]:
        return "cut"
    return "grow" if letters[:1] == "V" and there[0] < here[0] else None


def _why(own: ModelConfig, config: ModelConfig, wrong: Sequence[str]) -> str:
    """Return in words which settings do not fit a folder's weights, or else which parameters."""
    shapes = tree.flatten(api.abstract(own))
    blamed = {}
    for key, there, here in sets.diff(own, config):
        group = key.partition(".")[0]
        if group == "experts" and not own.experts.number:
            continue
        try:
            other = own.replace(**{group: getattr(config, group)})
            changes = _misfits(
                shapes, tree.flatten(api.abstract(other)), tree.flatten(api.axes(other))
            )
        except ConfigError:  # that setting fits the others of the folder no more
            changes = True
        if changes:
            blamed[f"model.{key}"] = _told(key, there, here)
    shown = list(wrong[:SHOWN] if not blamed else wrong[:1])
    if len(wrong) > len(shown):
        shown.append(f"and {len(wrong) - len(shown)} more")
    if not blamed:
        return "; ".join(shown)
    return (
        f"{'; '.join(blamed.values())}; leave out {' and '.join(blamed)}, or train without "
        f"init_from ({'; '.join(shown)})"
    )


def _told(key: str, there: Any, here: Any) -> str:
    one, other = ("null" if value is None else value for value in (there, here))
    return f"model.{key}={other} here, {one} there"


def _grow(table: np.ndarray, rows: int) -> np.ndarray:
    """Return the table with more rows, each the mean of those it has."""
    mean = table.astype(np.float32).mean(axis=0, keepdims=True).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, rows - len(table), axis=0)])


def record(path: Path, initial: Initial, folder: Path, *, beneath: bool = False) -> None:
    """Write into env.json where the weights come from; CheckpointError if others were there.

    beneath: whether they stay as they are, beneath an adapter.
    """
    about = check_same(path, initial, folder)
    source: dict[str, Any] = {"folder": str(folder), "sha256": initial.digest}
    if beneath:
        source["fingerprint"] = fingerprint(tree.unflatten(initial.params))
    files.write_json(path, about | {"init_from": source})


def check_same(path: Path, initial: Initial, folder: Path) -> dict[str, Any]:
    """Return what env.json says; CheckpointError if the run began with other weights."""
    about = json.loads(path.read_bytes()) if path.exists() else {}
    before = about.get("init_from")
    if before is not None and before["sha256"] != initial.digest:
        raise CheckpointError(
            f"{folder} holds other weights than when the run began; restore them, or begin a new "
            f"run"
        )
    return about


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
    if folder.is_dir() or hub_read.is_hub(folder):
        return
    remedy = sources.advice(folder, "init_from={}") or f"; {sources.REMEDIES}"
    if (files.config_folder() / f"{folder.name}.yaml").is_file():  # a run is named after its config
        remedy = f"; `jaxgen train {folder.name}` makes it"
    raise ConfigError(f"init_from={folder}: no such folder{remedy}")
