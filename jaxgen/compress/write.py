"""A model through a recipe, layer by layer, in a folder of parts; a second start goes on.

A part is written whole or not at all, with its sha256 beside it, and read back before the next
layer runs on it: killed at any moment, the same command ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen import files, settings, tree
from jaxgen.adapters.base import fingerprint
from jaxgen.adapters.sites import sites
from jaxgen.compress import layerwise, matrix
from jaxgen.compress.layerwise import Statistics
from jaxgen.compress.recipe import Recipe
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.nn.stack import layer_params, layer_path
from jaxgen.ops.int8 import Int8
from jaxgen.pretrained import leaves
from jaxgen.pretrained.assets import MAX_RECEIPT
from jaxgen.store import safetensors
from jaxgen.store.lock import RunLock

ABOUT = "about.json"
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
        The receipt: the recipe, and errors by matrix. Raises ConfigError for a model or recipe
        that don't go together, or a folder of another one; BusyError where another process has it.
    """
    layerwise.check_model(config, params)
    of_layers = {path: site for path, site in sites(config).items() if site.layers}
    tree.check_patterns("keep", recipe.keep, tree.unflatten(of_layers))
    matrix.check(recipe, of_layers)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        _begin(folder, origin(params, config, recipe, rows))
        shared, matrices = layerwise.shared_params(params), []
        stream = layerwise.embed(params, config, rows)
        for layer in range(config.layers):
            start, path = time.monotonic(), _part(folder, layer)
            own = layer_params(params, config, layer)
            record = _sound(path)
            if record is None:
                stats = layerwise.statistics(own, shared, config, layer, stream)
                record = _write_part(path, *_compress_layer(own, config, layer, recipe, stats))
                del stats
                say(_line(config, layer, record, time.monotonic() - start))
            matrices += record["matrices"]
            if stream and layer + 1 < config.layers:
                changed = tree.unflatten({**tree.flatten(own), **_read_part(path)})
                stream = [layerwise.run_layer(changed, shared, config, layer, x) for x in stream]
    return {"recipe": settings.as_dict(recipe), "matrices": matrices}


def assemble(flat: dict[str, Any], config: ModelConfig, recipe: Recipe, folder: Path) -> None:
    """Put the parts of a folder into the parameters by path, in place of what they were made of."""
    homes: dict[str, list[int]] = {}
    for layer in range(config.layers):
        homes.setdefault(layer_path(config, layer)[0], []).append(layer)
    for home, layers in homes.items():
        opened = [safetensors.open_noted(_part(folder, layer)) for layer in layers]
        stacked = layer_path(config, layers[0])[1] is not None
        read = partial(_read_layers, [tensors for tensors, _ in opened], stacked)
        # One after the other, so that each takes the place of what it was made of.
        for name, leaf in leaves.from_arrays(*opened[0], read, folder, widen=False):
            flat[f"{home}/{name}"] = leaf
    if recipe.tables == "int8":
        for path, letters in tree.flatten(api.axes(config)).items():
            if letters == "VD":
                flat[path] = Int8.of_transposed(jnp.asarray(flat[path]), 1)


def _read_layers(parts: list[Any], stacked: bool, name: str) -> np.ndarray:
    arrays = [safetensors.read_tensor(tensors[name]) for tensors in parts]
    return np.stack(arrays) if stacked else arrays[0]


def origin(
    params: api.Params, config: ModelConfig, recipe: Recipe, rows: np.ndarray | None
) -> dict[str, Any]:
    """Return what a result is of: the recipe, and digests of the model and the text."""
    model = json.dumps([fingerprint(params), settings.as_dict(config)], sort_keys=True, default=str)
    return {
        "recipe": settings.as_dict(recipe),
        "model": hashlib.sha256(model.encode()).hexdigest(),
        "text": None if rows is None else hashlib.sha256(rows.tobytes()).hexdigest(),
    }


def differing(path: Path, expected: dict[str, Any]) -> list[str]:
    """Return which keys of an `origin` a JSON file has otherwise."""
    record = files.read_json(path, "record of a compressed model", MAX_RECEIPT)
    return [name for name in expected if record.get(name) != expected[name]]


def _begin(folder: Path, expected: dict[str, Any]) -> None:
    """Write the origin of the parts; ConfigError if those that are there have another."""
    path = folder / ABOUT
    if not path.exists():
        files.write_json(path, expected)
    elif names := differing(path, expected):
        raise ConfigError(
            f"{folder} holds parts of another {' and '.join(names)}; remove it, or give another "
            f"--out"
        )


def _compress_layer(
    own: Any, config: ModelConfig, layer: int, recipe: Recipe, stats: dict[str, Statistics]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (the changed weights of a layer by path, the receipt's row of each)."""
    flat, by_path = tree.flatten(own), layerwise.layer_sites(config, layer)
    home, weights, rows = layer_path(config, layer)[0], {}, []
    for path, site in by_path.items():
        if not recipe.changes(f"{home}/{path}"):
            continue
        of_inputs = stats.get(layerwise.input_of(path, by_path))
        weights[path], error, nearest = matrix.compress_matrix(flat[path], site, recipe, of_inputs)
        rows.append({"layer": layer, "path": path, "error": error, "nearest": nearest})
    return weights, rows


def _part(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:04d}.safetensors"


def _write_part(
    path: Path, weights: dict[str, Any], matrices: list[dict[str, Any]]
) -> dict[str, Any]:
    arrays, notes = leaves.to_arrays(weights)
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    with files.new_file(path) as draft:
        shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
        safetensors.write_safetensors(draft, shapes, arrays.__getitem__, notes)
    record = {"matrices": matrices, "sha256": files.digest(path)}
    files.write_json(path.with_suffix(".json"), record)
    return record


def _sound(path: Path) -> dict[str, Any] | None:
    """Return the record of a part; None where it is not there, not whole, or changed."""
    record_path = path.with_suffix(".json")
    if not path.exists() or not record_path.exists():
        return None
    record = files.read_json(record_path, "record of a part", MAX_RECEIPT)
    return record if record.get("sha256") == files.digest(path) else None


def _read_part(path: Path) -> dict[str, Any]:
    tensors, notes = safetensors.open_noted(path)

    def read(name: str) -> Any:
        return jnp.asarray(safetensors.read_tensor(tensors[name]))

    return dict(leaves.from_arrays(tensors, notes, read, path))


def mean_errors(matrices: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean error of a receipt's matrices, and that of rounding to nearest."""
    count = max(len(matrices), 1)
    return {key: sum(row[key] for row in matrices) / count for key in ("error", "nearest")}


def _line(config: ModelConfig, layer: int, record: dict[str, Any], seconds: float) -> str:
    mean = mean_errors(record["matrices"])
    return (
        f"layer {layer + 1} of {config.layers}: relative output error {mean['error']:.2e} "
        f"(nearest: {mean['nearest']:.2e}), {seconds:.1f} s"
    )
