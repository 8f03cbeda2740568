"""A model through a recipe, layer by layer, in a folder of parts; a second start goes on.

A part is written whole or not at all, with its sha256 beside it, and read back before the next
layer runs on it: killed at any moment, the same command ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen import files, settings, tree
from jaxgen.adapters.base import fingerprint
from jaxgen.compress import layerwise, matrix
from jaxgen.compress.layerwise import Statistics
from jaxgen.compress.recipe import Recipe
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.nn.stack import layer_path
from jaxgen.ops.int8 import Int8
from jaxgen.pretrained import leaves
from jaxgen.store import safetensors
from jaxgen.store.lock import RunLock

ABOUT, RECEIPT = "about.json", "compress.json"
MAX_RECORD = 64 << 20
Say = Callable[[str], object]


def compress_layers(
    params: api.Params,
    config: ModelConfig,
    recipe: Recipe,
    rows: np.ndarray | None,
    folder: Path,
    *,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Write each layer's new weights into a folder, those that are not there yet.

    Args:
        params: of the model, plain arrays.
        config: of the model.
        recipe: what is done.
        rows: calibration text, ids [rows, length]; None for a recipe that needs none.
        folder: of the parts; made, or gone on with if it is of the same model, recipe and text.
        say: gets a line after each layer.

    Returns:
        The receipt: errors by matrix, and what was done. Raises ConfigError for a model or recipe
        that don't go together, or a folder of another one; BusyError where another process has it.
    """
    layerwise.check_model(config, params)
    known = {
        path: one for layer in range(config.layers) for path, one in _full(config, layer).items()
    }
    tree.check_patterns("keep", recipe.keep, tree.unflatten(known))
    matrix.check(recipe, known)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        _begin(folder, params, config, recipe, rows)
        shared, errors = layerwise.shared_params(params), []
        stream = [
            layerwise.embed(params, config, jnp.asarray(part)) for part in layerwise.parts(rows)
        ]
        for layer in range(config.layers):
            start, path = time.monotonic(), _part(folder, layer)
            own = layerwise.layer_params(params, config, layer)
            record = _sound(path)
            if record is None:
                stats = layerwise.statistics(own, shared, config, layer, stream)
                new, record = _layer(
                    own, config, layer, recipe, stats, 0 if rows is None else rows.size
                )
                del stats
                record = _write_part(path, new, record)
                say(_line(config, layer, record, time.monotonic() - start))
            errors += record["matrices"]
            if stream and layer + 1 < config.layers:
                changed = tree.unflatten({**tree.flatten(own), **_read_part(path)})
                stream = [layerwise.run_layer(changed, shared, config, layer, x) for x in stream]
    text = {} if rows is None else {"rows": len(rows), "length": rows.shape[1]}
    return {"recipe": settings.as_dict(recipe), "calibration": text, "matrices": errors}


def assemble(flat: dict[str, Any], config: ModelConfig, recipe: Recipe, folder: Path) -> None:
    """Put the parts of a folder into the parameters by path, in place of what they were made of."""
    homes: dict[str, list[int]] = {}
    for layer in range(config.layers):
        homes.setdefault(layer_path(config, layer)[0], []).append(layer)
    for home, layers in homes.items():
        files_of = [safetensors.open_noted(_part(folder, layer)) for layer in layers]
        stacked = layer_path(config, layers[0])[1] is not None
        tensors, notes = files_of[0]
        about = json.loads(notes.get(leaves.NOTE, "{}"))
        names = [*about, *(n for n in tensors if not any(n.startswith(f"{p}/") for p in about))]

        def read(name: str, files_of: Any = files_of, stacked: bool = stacked) -> np.ndarray:
            arrays = [safetensors.read_tensor(tensors[name]) for tensors, _ in files_of]
            return np.stack(arrays) if stacked else arrays[0]

        for name in names:
            inside = {n for n in tensors if n == name or n.startswith(f"{name}/")}
            note = {leaves.NOTE: json.dumps({name: about[name]})} if name in about else {}
            made = leaves.from_arrays(inside, note, read, folder, widen=False)
            flat[f"{home}/{name}"] = made[name]
    if recipe.tables == "int8":
        for path, letters in tree.flatten(api.axes(config)).items():
            if letters == "VD":
                flat[path] = Int8.of_transposed(jnp.asarray(flat[path]), 1)


def _begin(
    folder: Path, params: api.Params, config: ModelConfig, recipe: Recipe, rows: np.ndarray | None
) -> None:
    """Write what the parts are of; ConfigError if those that are there are of something else."""
    model = json.dumps([fingerprint(params), settings.as_dict(config)], sort_keys=True, default=str)
    mine = {
        "recipe": settings.as_dict(recipe),
        "model": hashlib.sha256(model.encode()).hexdigest(),
        "text": None if rows is None else hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    path = folder / ABOUT
    if path.exists():
        other = files.read_json(path, "record of parts", MAX_RECORD)
        mine = json.loads(json.dumps(mine))
        differing = [name for name in mine if other.get(name) != mine[name]]
        if differing:
            raise ConfigError(
                f"{folder} holds parts of another {' and '.join(differing)}; remove it, or give "
                f"another --out"
            )
        return
    files.write_json(path, mine)


def _layer(
    own: Any,
    config: ModelConfig,
    layer: int,
    recipe: Recipe,
    stats: dict[str, Statistics],
    tokens: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the changed weights of a layer by path, what is known of them)."""
    flat, known = tree.flatten(own), layerwise.layer_sites(config, layer)
    new, rows = {}, []
    home = layer_path(config, layer)[0]
    for path, site in known.items():
        if not recipe.changes(f"{home}/{path}"):
            continue
        of_inputs = stats.get(layerwise.input_of(path, known))
        done = matrix.compress_matrix(flat[path], site, recipe, of_inputs, tokens)
        new[path] = done.leaf
        about = {"layer": layer, "path": path, "error": done.error, "nearest": done.nearest}
        rows.append(about)
    return new, {"matrices": rows}


def _full(config: ModelConfig, layer: int) -> dict[str, Any]:
    home = layer_path(config, layer)[0]
    return {f"{home}/{path}": s for path, s in layerwise.layer_sites(config, layer).items()}


def _part(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:04d}.safetensors"


def _write_part(path: Path, new: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    arrays, notes = leaves.to_arrays(new)
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    with files.new_file(path) as draft:
        shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        safetensors.write_safetensors(draft, shapes, arrays.__getitem__, notes)
    record = {**record, "sha256": files.digest(path)}
    files.write_json(path.with_suffix(".json"), record)
    return record


def _sound(path: Path) -> dict[str, Any] | None:
    """Return what is known of a part; None where it is not there, not whole, or changed."""
    about = path.with_suffix(".json")
    if not path.exists() or not about.exists():
        return None
    record = files.read_json(about, "record of a part", MAX_RECORD)
    return record if record.get("sha256") == files.digest(path) else None


def _read_part(path: Path) -> dict[str, Any]:
    tensors, notes = safetensors.open_noted(path)

    def read(name: str) -> Any:
        return jnp.asarray(safetensors.read_tensor(tensors[name]))

    return leaves.from_arrays(tensors, notes, read, path)


def _line(config: ModelConfig, layer: int, record: dict[str, Any], seconds: float) -> str:
    rows = record["matrices"]
    mean = {key: sum(row[key] for row in rows) / max(len(rows), 1) for key in ("error", "nearest")}
    return (
        f"layer {layer + 1} of {config.layers}: relative output error {mean['error']:.2e} "
        f"(nearest: {mean['nearest']:.2e}), {seconds:.1f} s"
    )
