"""How a folder makes one vector of a text: the modules that sentence-transformers lists."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError
from jaxgen.pretrained.gguf_read import is_gguf, read_pooling_mode
from jaxgen.pretrained.hub_read import MAX_CONFIG
from jaxgen.store import safetensors

MODULES, ABOUT = "modules.json", "config.json"
LENGTH, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
WEIGHTS = "model.safetensors"
Mode = Literal["mean", "cls", "last", "max", "root_mean", "weighted_mean"]
# Keys of a pooling's config.json, each true or false.
MODES: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "root_mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
}
# The value of pooling_mode, as newer files have it.
NAMES: dict[str, Mode] = {
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
    "max": "max",
    "mean_sqrt_len_tokens": "root_mean",
    "weightedmean": "weighted_mean",
}
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Tanh": np.tanh,
    "Identity": lambda x: x,
}


@dataclass(frozen=True)
class Pooling:
    """What becomes of the last hidden states of a text.

    mode: of its tokens, how one vector is made. after: what follows, in turn. longest: tokens of a
    text at most; None: as many as the model takes. prompt: what is put before every text.
    """

    mode: Mode = "mean"
    after: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()
    longest: int | None = None
    prompt: str = ""
    lower: bool = False


def read_pooling(folder: Path | None) -> Pooling:
    """Return the pooling of a folder: what its modules.json lists, else a mean.

    Raises CheckpointError that names a module, or a setting of one, which is not known here.
    """
    if folder is not None and is_gguf(folder):
        named = read_pooling_mode(folder)
        # llama.cpp makes all embeddings of length 1.
        return Pooling() if named is None else Pooling(NAMES[named], (_normalize,))
    if folder is None or not (folder / MODULES).exists():
        return Pooling()
    after: list[Callable[[np.ndarray], np.ndarray]] = []
    mode: Mode | None = None
    for kind, home in _modules(folder)[1:]:
        if kind == "Pooling" and mode is None:
            mode = _mode(home / ABOUT)
        elif kind == "Normalize":
            after.append(_normalize)
        elif kind == "Dense":
            after.append(_dense(home))
        else:
            raise CheckpointError(f"{folder / MODULES}: {kind} is not known here")
    about = _optional(folder / LENGTH)
    longest = about.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise CheckpointError(f"{folder / LENGTH}: max_seq_length={longest!r:.40} is no number")
    lower = about.get("do_lower_case") is True
    return Pooling(mode or "mean", tuple(after), longest, _prompt(folder), lower)


def copy_pooling(folder: Path, target: Path) -> None:
    """Copy the files of a folder's pooling into another; nothing if it has none."""
    if is_gguf(folder) and read_pooling_mode(folder) is not None:
        warnings.warn(f"{folder}: its pooling is not kept: {target} means its tokens", stacklevel=2)
    if not (folder / MODULES).exists():
        return
    homes = [home.relative_to(folder) for _, home in _modules(folder)[1:]]
    names = [home / name for home in homes for name in (ABOUT, WEIGHTS)]
    for name in (Path(MODULES), Path(LENGTH), Path(PROMPTS), *names):
        if (folder / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, target / name)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return (kind, folder) of each module."""
    path = folder / MODULES
    modules = []
    for row in files.read_json_as(list, path, "list of modules", MAX_CONFIG):
        entry = row if isinstance(row, dict) else {}
        kind, home = entry.get("type"), entry.get("path")
        if not isinstance(kind, str) or not isinstance(home, str):
            raise CheckpointError(f"{path}: {row!r:.60} has no type and path; fetch it again")
        parts = PurePosixPath(home).parts
        if len(parts) > 1 or ".." in parts or home.startswith("/"):
            raise CheckpointError(f"{path}: {home!r:.60} is no folder beside it")
        modules.append((kind.rpartition(".")[2], folder / home))
    if not modules or modules[0][0] != "Transformer" or modules[0][1] != folder:
        raise CheckpointError(f"{path}: its first module is not the Transformer of this folder")
    return modules


def _mode(path: Path) -> Mode:
    about = files.read_json(path, "pooling config", MAX_CONFIG)
    named = about.get("pooling_mode")
    if isinstance(named, str) and named in NAMES:
        return NAMES[named]
    on = [key for key in about if key.startswith("pooling_mode_") and about[key]]
    if named is not None or len(on) != 1 or on[0] not in MODES:
        modes = ", ".join(on) or "no mode"
        if named is not None:
            modes = f"pooling_mode={named!r:.40}"
        raise CheckpointError(
            f"{path}: {modes}: one is known here at a time, of {', '.join(NAMES)}"
        )
    return MODES[on[0]]


def _prompt(folder: Path) -> str:
    about = _optional(folder / PROMPTS)
    name, prompts = about.get("default_prompt_name"), about.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise CheckpointError(f"{folder / PROMPTS}: default_prompt_name={name!r:.40} has no prompt")
    return prompt


def _normalize(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _dense(home: Path) -> Callable[[np.ndarray], np.ndarray]:
    about = files.read_json(home / ABOUT, "config of a dense layer", MAX_CONFIG)
    name = str(about.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if (activation := ACTIVATIONS.get(name.rpartition(".")[2])) is None:
        raise CheckpointError(f"{home / ABOUT}: activation_function={name:.60} is not known here")
    if not (home / WEIGHTS).exists():
        raise CheckpointError(f"{home} has no {WEIGHTS}; convert its weights where you trust them")
    stored = {
        k: safetensors.read_tensor(t) for k, t in safetensors.open_file(home / WEIGHTS).items()
    }
    weight, bias = stored.get("linear.weight"), stored.get("linear.bias")
    if weight is None or weight.ndim != 2:
        raise CheckpointError(f"{home / WEIGHTS} has no matrix linear.weight")

    def dense(vectors: np.ndarray) -> np.ndarray:
        projected = vectors @ weight.astype(np.float32).T
        return activation(projected if bias is None else projected + bias.astype(np.float32))

    return dense


def _optional(path: Path) -> dict[str, Any]:
    return files.read_json(path, "config", MAX_CONFIG) if path.exists() else {}
