"""A model in the Hugging Face layout, read: config.json, safetensors, tokenizer. Never pickle.

A GGUF file is read as if it were such a folder: `gguf_read` says what would be in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxgen import files, tree
from jaxgen.adapters.sites import Site, sites
from jaxgen.config import DType, ModelConfig
from jaxgen.errors import CheckpointError, ConfigError, nearest
from jaxgen.mesh.place import aligned, laid
from jaxgen.models import api, families, serving
from jaxgen.models.families.family import Family
from jaxgen.models.families.weights import Link, Theirs, table
from jaxgen.nn.stack import STACK_AXIS
from jaxgen.pretrained import coded, compressed_tensors, gguf_config, gguf_read, leaves
from jaxgen.pretrained.compressed_tensors import Packed
from jaxgen.pretrained.gguf_read import Stored, is_gguf
from jaxgen.pretrained.hub_names import CONFIG, Tensor, check_names, named
from jaxgen.store import safetensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
MAX_CONFIG, MAX_INDEX = 1 << 20, 100 << 20
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
HEADS = ("head/", "unembed/")  # where the parameters of a head are

NonFinite = Literal["refuse", "allow"]


def is_hub(folder: Path) -> bool:
    """Return whether a folder is in the Hugging Face layout and no run of ours, or a GGUF file."""
    if is_gguf(folder):
        return folder.is_file()
    return (folder / CONFIG).is_file() and not (folder / "config.yaml").exists()


def read_config(folder: Path, head: str | None = None) -> tuple[Family, ModelConfig]:
    """Return (family, config) of config.json; CheckpointError that names the setting at fault.

    head: of the family's class with that head, where it has one; None: of the class named there.
    """
    family, theirs, path = _settings(folder)
    try:
        config = family.read(theirs if head is None else family.as_head(theirs, head))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return family, config if path == folder else _as_stored(folder, family, config)


def _as_stored(folder: Path, family: Family, config: ModelConfig) -> ModelConfig:
    """Return a config with a table of token logits of its own where the files hold one.

    As in transformers, whatever tie_word_embeddings says.
    """
    rows = (*family.rows, *family.head_rows.get(config.head, ()))
    own = next((row.theirs for row in rows if row.ours == ("unembed/tokens",)), "")
    other = family.copies.get(own)
    files_there = (folder / WEIGHTS).exists() or (folder / INDEX).exists()
    if config.output != "tied" or other is None or not files_there:
        return config
    stored = tensors(folder)
    if not {own, other} <= stored.keys():
        return config
    one, two = stored[own], stored[other]
    if _are_equal(one, two, one.path.stat().st_mtime_ns, two.path.stat().st_mtime_ns):
        return config
    warnings.warn(
        f"{folder}: tie_word_embeddings says that {own!r} is {other!r}, but they differ, so both "
        f"are read, as by transformers; set it to false in {CONFIG}",
        stacklevel=3,
    )
    return config.replace(output="untied")


@lru_cache(maxsize=8)
def _are_equal(one: Tensor, other: Tensor, *written: int) -> bool:
    """Return whether two tensors hold the same bytes; written: when their files were."""
    return one.shape == other.shape and one.read().tobytes() == other.read().tobytes()


def _settings(folder: Path) -> tuple[Family, Mapping[str, Any], Path]:
    """Return (family, what config.json says, the file that says it)."""
    if is_gguf(folder):
        return *gguf_config.read_family(folder), folder
    path = folder / CONFIG
    theirs = files.read_json(path, "model config", MAX_CONFIG)
    return *families.of_folder(theirs, str(path)), path


def _warn_of_ignored(folder: Path, family: Family, theirs: Mapping[str, Any]) -> None:
    """Warn once of all that config.json says and no family, nor transformers, reads."""
    path = folder / CONFIG
    if "auto_map" in theirs:
        warnings.warn(f"{path}: auto_map is ignored: no code of a model is ever run", stacklevel=4)
    if ignored := family.ignored_settings(theirs) + family.odd_settings(theirs):
        warnings.warn(
            f"{path}: ignored, as transformers does for {family.model_type}: {', '.join(ignored)}",
            stacklevel=4,
        )


def tensors(folder: Path) -> Mapping[str, Tensor]:
    """Return {name: Tensor} of a folder's one or many safetensors files, or of a GGUF file.

    A quantised matrix is one tensor. Raises CheckpointError for a missing or damaged file, and for
    a folder of pickles.
    """
    if is_gguf(folder):
        return gguf_read.tensors(folder)
    about = files.read_json(folder / CONFIG, "model config", MAX_CONFIG)
    return compressed_tensors.opened(folder, about, _stored(folder))


def _stored(folder: Path) -> Mapping[str, safetensors.Tensor]:
    if (folder / INDEX).exists():
        return _sharded(folder)
    if (folder / WEIGHTS).exists():
        return safetensors.open_file(folder / WEIGHTS)
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES):
        raise CheckpointError(
            f"{folder / pickles[0]}: pickle is not read, for it could run any program; convert the "
            f"model to safetensors where you trust it"
        )
    raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}; fetch them")


def _sharded(folder: Path) -> dict[str, safetensors.Tensor]:
    path = folder / INDEX
    where = files.read_json(path, "index of weights", MAX_INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"{path}: its weight_map does not map names to files")
    tensors: dict[str, safetensors.Tensor] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard or Path(shard).suffix != ".safetensors":
            raise CheckpointError(f"{path}: {shard!r:.80} is no safetensors file of this folder")
        if not (folder / shard).exists():
            count = sum(name == shard for name in where.values())
            raise CheckpointError(
                f"{folder / shard} is missing; {INDEX} names it for {count} tensors; fetch it"
            )
        inside = safetensors.open_file(folder / shard)
        if twice := sorted(tensors.keys() & inside.keys()):
            raise CheckpointError(f"{folder / shard}: {twice[0]!r} is in another shard as well")
        tensors |= inside
        wanted = {name for name, home in where.items() if home == shard}
        if odd := sorted(wanted ^ inside.keys()):
            word = "lacks" if odd[0] in wanted else "has, but not its index,"
            raise CheckpointError(f"{folder / shard} {word} {odd[0]!r}")
    return tensors


def load_hub(
    folder: Path,
    *,
    dtype: DType | None,
    shardings: Mapping[str, Any] | None,
    nonfinite: NonFinite,
    stored_blocks: bool = False,
    head: str | None = None,
) -> tuple[ModelConfig, api.Params]:
    """Return (config, params) of a folder, each parameter read and placed by itself.

    dtype: None keeps what is stored. shardings: a tree like the params; None: the default device.
    stored_blocks: quantised matrices stay so; of GGUF files those of Q8_0. head: as the family's
    class with that head, of which the params have what the folder has; None: its own.
    """
    family, config = read_config(folder, head)
    theirs = _settings(folder)[1]
    _warn_of_ignored(folder, family, theirs)
    stored = tensors(folder)
    # Parameters are of one type as a rule; begun with it, their shapes are traced once.
    config = _typed(family, config, dtype or theirs.get("dtype") or theirs.get("torch_dtype"))
    if config.head == "pooled" and not any(".pooler." in f".{name}" for name in stored):
        config = config.replace(head="none")
    family = family.as_in(stored)
    wanted = table(family, config)
    if head is not None:
        own = table(family, read_config(folder)[1])
        others = {name for name in own.keys() - wanted.keys() if _is_of_head(own[name])}
        stored = {name: tensor for name, tensor in stored.items() if name not in others}
    stored = named(folder, family, config, stored, wanted)
    if head is not None:
        wanted = {n: t for n, t in wanted.items() if n in stored or not _is_of_head(t)}
    check_names(folder, {n: t.shape for n, t in stored.items()}, wanted)
    kind = dtype or _dtype(folder, {n: stored[n] for n in wanted}, theirs)
    config = _typed(family, config, kind)
    links: dict[str, list[tuple[Tensor, Link]]] = {}
    for name, tensor in wanted.items():
        for link in tensor.links:
            links.setdefault(link.path, []).append((stored[name], link))
    homes = tree.flatten(shardings) if shardings is not None else {}
    by_path = sites(config)
    shapes, letters = tree.flatten(api.abstract(config)), tree.flatten(api.axes(config))
    placed: dict[str, Any] = {}
    reads: dict[str, Callable[..., np.ndarray]] = {}
    for path in (path for path in shapes if path in links):
        leaf, parts = shapes[path], sorted(links[path], key=_index)
        one = letters[path].removeprefix(STACK_AXIS)
        matrix = one == "VD" or one in serving.NUM_CONTRACTED
        read = partial(_read_piece, leaf, parts, nonfinite)
        if stored_blocks and matrix and all(_is_coded(tensor) for tensor, _ in parts):
            placed[path] = _load_codes(one, leaf, parts, by_path.get(path), nonfinite)
        elif (sharding := homes.get(path)) is not None:
            placed[path] = jax.make_array_from_callback(leaf.shape, sharding, read)
        else:
            reads[path] = read
    pieces = files.each(lambda read: read(), reads.values())
    placed |= zip(reads, map(jax.device_put, pieces), strict=True)
    if stored_blocks and not any(map(leaves.is_quantised, placed.values())):
        kinds = ", ".join(sorted({tensor.dtype for tensor in stored.values()}))
        raise ConfigError(
            f"{folder}: weights='stored' keeps matrices of Q8_0 and of compressed-tensors, and "
            f"there are none ({kinds}); drop it"
        )
    return config, tree.unflatten(placed)


def _typed(family: Family, config: ModelConfig, kind: Any) -> ModelConfig:
    if kind not in FLOATS.values():
        return config
    return config.replace(param_dtype=kind, compute_dtype=family.compute.get(kind, kind))


def _is_of_head(theirs: Theirs) -> bool:
    return all(link.path.startswith(HEADS) for link in theirs.links)


def _index(pair: tuple[Tensor, Link]) -> tuple[int, ...]:
    return pair[1].at


def _read_piece(
    leaf: Any,
    parts: list[tuple[Tensor, Link]],
    nonfinite: NonFinite,
    index: tuple[slice, ...] | None = None,
) -> np.ndarray:
    """Return the part of a parameter that one device holds; None: all of it."""
    index = (slice(None),) * len(leaf.shape) if index is None else index
    depth = len(parts[0][1].at)
    if not depth:
        return laid(_read(*parts[0], leaf.dtype, nonfinite)[index])
    grid = np.arange(len(parts)).reshape(leaf.shape[:depth])[index[:depth]]
    held = np.empty(0)
    for number, part in enumerate(grid.ravel()):  # one layer at a time is there twice
        tensor, link = parts[int(part)]
        layer = _read(tensor, link, leaf.dtype, nonfinite)[index[depth:]]
        held = held if number else aligned((grid.size, *layer.shape), layer.dtype)
        held[number] = layer
    return held.reshape(*grid.shape, *held.shape[1:])


def _is_coded(tensor: Tensor) -> bool:
    return isinstance(tensor, Packed) or (
        isinstance(tensor, Stored) and tensor.tensor.dtype == "Q8_0"
    )


def _load_codes(
    letters: str, leaf: Any, parts: list[tuple[Any, Link]], site: Site | None, nonfinite: NonFinite
) -> Any:
    """Return a matrix with the integers that it is stored as; letters: of its axes."""
    stacked = bool(parts[0][1].at)
    shape, count = leaf.shape[stacked:], serving.NUM_CONTRACTED.get(letters, 1)
    outputs = shape[:-1] if letters == "VD" else shape[count:]
    layers = []
    for tensor, link in parts:
        codes = tensor.codes()
        if nonfinite == "refuse" and not np.isfinite(codes.scale).all():
            raise CheckpointError(
                f"{tensor.path}: {tensor.name!r} holds NaN or infinity; nonfinite='allow' takes it"
            )
        layers.append(coded.scatter(codes, link, site, outputs, leaf.dtype))
    if len({jax.tree.structure(layer) for layer in layers}) > 1:
        raise CheckpointError(
            f"{parts[0][0].path}: layers are quantised in several ways, as {parts[0][0].name!r} "
            f"and others; weights='plain' reads their numbers"
        )
    held = jax.tree.map(lambda *each: np.stack(each) if stacked else each[0], *layers)
    return leaves.placed(jax.tree.map(lambda array: jax.device_put(laid(array)), held))


def _read(tensor: Tensor, link: Link, dtype: Any, nonfinite: NonFinite) -> np.ndarray:
    raw = tensor.read()
    with np.errstate(over="ignore"):
        cast = raw if raw.dtype == dtype else raw.astype(dtype)
    if nonfinite == "refuse" and not _is_finite(cast):
        if cast is not raw and _is_finite(raw):
            raise CheckpointError(
                f"{tensor.path}: {tensor.name!r} overflows as {dtype}; load it as it is stored"
            )
        raise CheckpointError(
            f"{tensor.path}: {tensor.name!r} holds NaN or infinity; nonfinite='allow' takes it"
        )
    return link.read(cast)


def _is_finite(array: np.ndarray) -> bool:
    """Return whether no number is NaN or infinite, without a copy of them.

    Infinities, and NaNs beyond them, have the largest bits among the numbers of either sign.
    """
    size = array.dtype.itemsize
    up, down = (int(np.array(x, array.dtype).view(f"u{size}")) for x in (np.inf, -np.inf))
    positive, negative = array.view(f"i{size}"), array.view(f"u{size}")
    return bool(positive.max(initial=0) < up and negative.max(initial=0) < down)


def _dtype(folder: Path, stored: Mapping[str, Tensor], theirs: Mapping[str, Any]) -> Any:
    """Return the dtype of the tensors; of several, the one that config.json names, or float32.

    Of a GGUF file that of its matrices, for norms are in float32 there whatever these are.
    """
    kinds: dict[str, str] = {}
    for name, tensor in stored.items():
        if not is_gguf(folder) or len(tensor.shape) > 1:
            kinds.setdefault(tensor.dtype, name)
    if is_gguf(folder) and len(kinds) > 1:
        return "float32"
    if odd := sorted(kinds.keys() - FLOATS.keys()):
        raise CheckpointError(
            f"{folder}: {kinds[odd[0]]!r} is {odd[0]}; quantised and other weights than "
            f"{', '.join(FLOATS)} are not read"
        )
    if len(kinds) > 1:
        dtypes = ", ".join(f"{name!r} is {FLOATS[kind]}" for kind, name in kinds.items())
        named = theirs.get("dtype") or theirs.get("torch_dtype")
        chosen = named if named in [FLOATS[kind] for kind in kinds] else "float32"
        warnings.warn(
            f"{folder}: {dtypes}; all are read as {chosen}; dtype= of jaxgen.load says another",
            stacklevel=4,
        )
        return chosen
    return FLOATS[next(iter(kinds))]


def refuse_dtype(dtype: str | None) -> None:
    """Raise ConfigError for a dtype that no parameter can have."""
    if dtype is not None and dtype not in FLOATS.values():
        known = ", ".join(FLOATS.values())
        raise ConfigError(f"dtype={dtype!r} is not one of {known}{nearest(dtype, FLOATS.values())}")
