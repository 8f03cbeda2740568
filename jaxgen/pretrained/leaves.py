"""Quantised weights in a safetensors file: the arrays of a leaf, and a note of what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import tree
from jaxgen.adapters.sites import sites
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.mesh.place import platform
from jaxgen.models import api
from jaxgen.ops.contract import contract, lookup
from jaxgen.ops.input_scaled import InputScaled
from jaxgen.ops.int4 import Int4
from jaxgen.ops.int4_groups import Int4Groups
from jaxgen.ops.int8 import Int8, Int8Activations
from jaxgen.ops.int8_blocks import Int8Blocks

NOTE = "leaves"
KINDS: dict[str, type] = {
    "int8": Int8,
    "int8_activations": Int8Activations,
    "int8_blocks": Int8Blocks,
    "int4_groups": Int4Groups,
    "nf4": Int4,
    "input_scaled": InputScaled,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def to_arrays(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return ({name: array}, notes) of parameters by path, of which some may be quantised."""
    arrays: dict[str, Any] = {}
    notes = {path: _take(path, leaf, arrays) for path, leaf in flat.items()}
    notes = {path: note for path, note in notes.items() if note}
    return arrays, {NOTE: json.dumps(notes, sort_keys=True)} if notes else {}


def _take(path: str, leaf: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    """Add the arrays of a leaf; return what it is, nothing of a plain array."""
    if type(leaf) not in NAMES:
        arrays[path] = leaf
        return {}
    note: dict[str, Any] = {"kind": NAMES[type(leaf)]}
    for field in fields(leaf):
        value = getattr(leaf, field.name)
        if field.metadata.get("static"):
            note[field.name] = value
        elif value is not None:
            note[field.name] = _take(f"{path}/{field.name}", value, arrays)
    return note


def is_quantised(leaf: Any) -> bool:
    """Return whether a parameter is a leaf that `to_arrays` takes apart."""
    return type(leaf) in NAMES


def paths(notes: Mapping[str, str]) -> set[str]:
    """Return which parameters of a file are quantised."""
    return {*json.loads(notes.get(NOTE, "{}"))}


def from_arrays(
    names: Iterable[str],
    notes: Mapping[str, str],
    read: Callable[[str], Any],
    where: Path,
    *,
    widen: bool = True,
) -> Iterator[tuple[str, Any]]:
    """Yield (path, parameter) of those that `to_arrays` made arrays of, one read after the other.

    names: of the arrays; read: name -> array. widen: on a CPU 4-bit integers become int8.
    Raises CheckpointError for a note that is none of ours.
    """
    by_path: dict[str, Any] = {}
    try:
        by_path = json.loads(notes.get(NOTE, "{}"))
        for path, note in by_path.items():
            yield path, _build(path, note, read, widen)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: its quantised weights are of a form that is not known here ({error!r:.80}); "
            f"make it anew with `jaxgen compress`"
        ) from error
    inside = tuple(f"{path}/" for path in by_path)
    yield from ((name, read(name)) for name in names if not name.startswith(inside))


def _build(path: str, note: Any, read: Callable[[str], Any], widen: bool) -> Any:
    if not note:
        return read(path)
    kind = KINDS[note["kind"]]
    values: dict[str, Any] = {}
    for field in fields(kind):
        value = note.get(field.name)
        if field.metadata.get("static"):
            values[field.name] = int(note[field.name])
        else:
            name = f"{path}/{field.name}"
            values[field.name] = None if value is None else _build(name, value, read, widen)
    leaf = kind(**values)
    return placed(leaf) if widen else leaf


def placed(leaf: Any) -> Any:
    """Return a leaf in the form that is fast here: on a CPU 4-bit integers become int8."""
    is_slow = isinstance(leaf, Int4Groups) and platform() == "cpu"
    return jax.jit(type(leaf).widened)(leaf) if is_slow else leaf


def misfits(flat: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Return the paths of quantised weights that are not of this config's shapes."""
    by_path, letters = sites(config), tree.flatten(api.axes(config))
    shapes = tree.flatten(api.abstract(config))
    wrong = []
    for path, leaf in flat.items():
        if not is_quantised(leaf):
            continue
        try:
            if path in by_path:
                site = by_path[path]
                equation = f"BT{site.inner},{site.letters}->BT{site.outer}"
                x = jax.ShapeDtypeStruct((*site.stack, 1, 1, *site.sizes(site.inner)), "float32")
                matmul = lambda leaf, x, e=equation: contract(e, x, leaf, dtype="float32")  # noqa: E731
                y = jax.eval_shape(jax.vmap(matmul) if site.stack else matmul, leaf, x)
                fits = y.shape == (*site.stack, 1, 1, *site.sizes(site.outer))
            else:
                fits = letters.get(path) == "VD" and leaf.values.shape == shapes[path].shape
                ids = jnp.zeros(1, jnp.int32)
                jax.eval_shape(lambda leaf, i=ids: lookup(leaf, i, dtype="float32"), leaf)
        except (TypeError, ValueError, AttributeError, AssertionError):
            fits = False
        if not fits:
            wrong.append(path)
    return wrong
