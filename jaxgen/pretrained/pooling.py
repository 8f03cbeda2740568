"""How a folder makes one vector of a text: the modules that sentence-transformers lists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import files
from jaxgen.errors import CheckpointError, ConfigError, nearest
from jaxgen.pretrained.gguf_read import is_gguf, read_pooling_mode
from jaxgen.pretrained.hub_read import MAX_CONFIG
from jaxgen.store import safetensors

MODULES, ABOUT = "modules.json", "config.json"
PROMPTS, TOKENIZER = "config_sentence_transformers.json", "tokenizer_config.json"
# What the first module says of itself: the first of these that is there.
LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
WEIGHTS = "model.safetensors"
PACKAGE = "sentence_transformers."
Mode = Literal["cls", "max", "mean", "root_mean", "weighted_mean", "last"]
# Keys of a pooling's config.json, each true or false; the vectors of several lie in this order.
MODES: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "root_mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
# The values of pooling_mode, as newer files have it.
NAMES: dict[str, Mode] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "root_mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
# Keys that would change the vectors, and the values that don't. None of them is followed otherwise.
TRANSFORMER_ONLY = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "modality_config": (
        {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    ),
    "processing_kwargs": (None, {}),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
}
VECTOR_ONLY = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": (None, "sentence_embedding"),
}
ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": partial(jax.nn.gelu, approximate=False),
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
}
# What a folder may pass on to transformers, by what changes no vector: the rest is refused.
PASSED_ON = (
    "config_args config_kwargs model_args model_kwargs processor_kwargs tokenizer_args".split()
)
HARMLESS = frozenset("add_pooling_layer attn_implementation dtype padding_side torch_dtype".split())
Step = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pooling:
    """What becomes of the last hidden states of a text.

    modes: of its tokens, how one vector is made; those of several are joined. after: what follows,
    in turn. longest: tokens of a text at most; None: as many as the model takes. prompts: what may
    be put before every text, by name; default: the name of the one that is, unless another is
    asked for. pools_prompt: whether its tokens count as those of the text.
    """

    modes: tuple[Mode, ...] = ("mean",)
    after: tuple[Step, ...] = ()
    longest: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    pools_prompt: bool = True
    lower: bool = False

    def prompt(self, name: str | None = None) -> str:
        """Return what is put before a text; ConfigError for a name that has no prompt."""
        name = self.default if name is None else name
        # A folder that names no prompt for them reads queries and documents alike.
        known = {"query": "", "document": "", **self.prompts}
        if name is not None and name not in known:
            raise ConfigError(
                f"prompt_name={name} is no prompt of the folder{nearest(name, known)}; it has "
                f"{', '.join(known)}"
            )
        return "" if name is None else known[name]


def read_pooling(folder: Path | None) -> Pooling:
    """Return the pooling of a folder: what its modules.json lists, else a mean.

    Raises CheckpointError that names a module, or a setting of one, which is not known here.
    """
    if folder is not None and is_gguf(folder):
        named = read_pooling_mode(folder)
        # llama.cpp makes all embeddings of length 1.
        return Pooling() if named is None else Pooling((NAMES[named],), after=(_unit,))
    if folder is None or not (folder / MODULES).exists():
        return Pooling()
    after: list[Step] = []
    pooled: dict[str, Any] | None = None
    for kind, home in _modules(folder)[1:]:
        if kind == "Pooling" and pooled is None:
            pooled = _pooling(home / ABOUT)
        elif kind in AFTER and pooled is not None:
            after.append(AFTER[kind](home))
        elif kind != "Dropout":
            raise CheckpointError(f"{folder / MODULES}: {kind} is not known here")
    if pooled is None:
        raise CheckpointError(f"{folder / MODULES} has no Pooling, which makes a vector of a text")
    about: dict[str, Any] = {}
    if (path := next((folder / n for n in LENGTHS if (folder / n).exists()), None)) is not None:
        about = _optional(path)
        _only(path, about, TRANSFORMER_ONLY)
        for key in PASSED_ON:
            if odd := sorted((about.get(key) or {}).keys() - HARMLESS):
                raise CheckpointError(f"{path}: {odd[0]} in {key} is not known here")
    prompts, cut = _prompts(folder / PROMPTS)
    lengths = {"longest": _longest(folder, about), "lower": about.get("do_lower_case") is True}
    return Pooling(**pooled, **prompts, **lengths, after=(*after, *cut))


def copy_pooling(folder: Path, target: Path) -> None:
    """Copy the files of a folder's pooling into another; nothing if it has none."""
    if is_gguf(folder) and read_pooling_mode(folder) is not None:
        warnings.warn(f"{folder}: its pooling is not kept: {target} means its tokens", stacklevel=2)
    if not (folder / MODULES).exists():
        return
    homes = [home.relative_to(folder) for _, home in _modules(folder)[1:]]
    names = [home / name for home in homes for name in (ABOUT, WEIGHTS)]
    for name in (*map(Path, (MODULES, PROMPTS, *LENGTHS)), *names):
        if (folder / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes((folder / name).read_bytes())


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
        if not kind.startswith(PACKAGE):
            raise CheckpointError(f"{path}: {kind:.80} is code of the model, which is never run")
        modules.append((kind.rpartition(".")[2], folder / home))
    if not modules or modules[0][0] != "Transformer" or modules[0][1] != folder:
        first = f"{modules[0][0]} of {modules[0][1]}" if modules else "nothing"
        raise CheckpointError(
            f"{path}: its first module is {first}, not the Transformer of this folder"
        )
    return modules


def _pooling(path: Path) -> dict[str, Any]:
    about = files.read_json(path, "pooling config", MAX_CONFIG)
    named = about.get("pooling_mode")
    if named is None:
        on = [key for key in about if key.startswith("pooling_mode_") and about[key]]
        odd = [key for key in on if key not in MODES]
        modes = [mode for key, mode in MODES.items() if key in on] or ["mean"]
    else:
        listed = named if isinstance(named, list) and named else [named]
        modes = [NAMES[name] for name in listed if isinstance(name, str) and name in NAMES]
        odd = [name for name in listed if not isinstance(name, str) or name not in NAMES]
    if odd:
        raise CheckpointError(
            f"{path}: pooling_mode={odd[0]!r:.60} is not known here; known: {', '.join(NAMES)}"
        )
    return {"modes": tuple(modes), "pools_prompt": about.get("include_prompt") is not False}


def _prompts(path: Path) -> tuple[dict[str, Any], list[Step]]:
    """Return (prompts of a folder and its default one, a cut to truncate_dim if it has that)."""
    about = _optional(path)
    prompts, default = about.get("prompts") or {}, about.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise CheckpointError(f"{path}: prompts={prompts!r:.60} are not names and texts")
    if default is not None and default not in {"query", "document", *prompts}:
        raise CheckpointError(f"{path}: default_prompt_name={default!r:.40} has no prompt")
    fields, size = {"prompts": prompts, "default": default}, about.get("truncate_dim")
    if size is None:
        return fields, []
    if type(size) is not int or size < 1:
        raise CheckpointError(f"{path}: truncate_dim={size!r:.40} is no number of 1 or more")
    return fields, [lambda vectors: vectors[:, :size]]


def _longest(folder: Path, about: Mapping[str, Any]) -> int | None:
    """Return how many tokens of a text are read at most: by the module, else by its tokenizer."""
    value, where = about.get("max_seq_length"), "max_seq_length"
    if value is None:
        value = _optional(folder / TOKENIZER).get("model_max_length")
        where = f"model_max_length of {TOKENIZER}"
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise CheckpointError(f"{folder}: {where} is {value!r:.40}, no number of tokens")
    return int(value)


def _normalize(home: Path) -> Step:
    _only(home / ABOUT, _optional(home / ABOUT), VECTOR_ONLY)
    return _unit


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _dense(home: Path) -> Step:
    about = files.read_json(home / ABOUT, "config of a dense layer", MAX_CONFIG)
    _only(home / ABOUT, about, VECTOR_ONLY)
    name = str(about.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = ACTIVATIONS.get(name.rpartition(".")[2])
    if activation is None or not name.startswith("torch."):
        raise CheckpointError(
            f"{home / ABOUT}: activation_function={name:.60} is not known here; known: torch's "
            f"{', '.join(ACTIVATIONS)}"
        )
    stored = _weights(home, "linear.weight", 2)
    weight, bias = stored["linear.weight"], stored.get("linear.bias", np.float32(0))
    residual, adds = stored.get("residual.weight"), about.get("use_residual") is True

    def dense(vectors: np.ndarray) -> np.ndarray:
        projected = np.asarray(activation(vectors @ weight.T + bias))
        if not adds:
            return projected
        return projected + (vectors if residual is None else vectors @ residual.T)

    return dense


def _layer_norm(home: Path) -> Step:
    stored = _weights(home, "norm.weight", 1)
    scale, bias = stored["norm.weight"], stored.get("norm.bias", np.float32(0))

    def norm(vectors: np.ndarray) -> np.ndarray:
        centred = vectors - vectors.mean(axis=1, keepdims=True)
        return centred / np.sqrt(centred.var(axis=1, keepdims=True) + 1e-5) * scale + bias

    return norm


AFTER: dict[str, Callable[[Path], Step]] = {
    "Normalize": _normalize,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
}


def _weights(home: Path, name: str, rank: int) -> dict[str, np.ndarray]:
    """Return the tensors of a module in float32, of which one must be there."""
    if not (home / WEIGHTS).exists():
        raise CheckpointError(f"{home} has no {WEIGHTS}; convert its weights where you trust them")
    tensors = safetensors.open_file(home / WEIGHTS)
    stored = {key: safetensors.read_tensor(t).astype(np.float32) for key, t in tensors.items()}
    if name not in stored or stored[name].ndim != rank:
        raise CheckpointError(f"{home / WEIGHTS} has no {name} of {rank} dimensions")
    return stored


def _only(path: Path, about: Mapping[str, Any], only: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise CheckpointError for a setting that is not followed here."""
    for key, values in only.items():
        if key in about and about[key] not in values:
            raise CheckpointError(f"{path}: {key}={about[key]!r:.80} is not known here")


def _optional(path: Path) -> dict[str, Any]:
    return files.read_json(path, "config", MAX_CONFIG) if path.exists() else {}
