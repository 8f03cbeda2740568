"""Quantised weights in a safetensors file: the arrays of a leaf, and a note of what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
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
    about = {path: found for path, leaf in flat.items() if (found := _take(path, leaf, arrays))}
    return arrays, {NOTE: json.dumps(about, sort_keys=True)} if about else {}


def _take(path: str, leaf: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    """Add the arrays of a leaf; return what it is, nothing of a plain array."""
    if type(leaf) not in NAMES:
        arrays[path] = leaf
        return {}
    about: dict[str, Any] = {"kind": NAMES[type(leaf)]}
    for field in fields(leaf):
        value = getattr(leaf, field.name)
        if field.metadata.get("static"):
            about[field.name] = value
        elif value is not None:
            about[field.name] = _take(f"{path}/{field.name}", value, arrays)
    return about


def is_quantised(leaf: Any) -> bool:
    """Return whether a parameter is a leaf that `to_arrays` takes apart."""
    return type(leaf) in NAMES


def from_arrays(
    names: Iterable[str],
    notes: Mapping[str, str],
    read: Callable[[str], Any],
    where: Path,
    *,
    widen: bool = True,
) -> dict[str, Any]:
    """Return the parameters by path that `to_arrays` made arrays of.

    names: of the arrays; read: name -> array. widen: on a CPU 4-bit integers become int8.
    Raises CheckpointError for a note that is none of ours.
    """
    try:
        about = json.loads(notes.get(NOTE, "{}"))
        inside = [f"{path}/" for path in about]
        flat = {path: _build(path, known, read, widen) for path, known in about.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: its quantised weights are of a form that is not known here ({error!r:.80}); "
            f"make it anew with `jaxgen compress`"
        ) from error
    plain = [name for name in names if not name.startswith(tuple(inside))]
    return flat | {name: read(name) for name in plain}


def _build(path: str, about: Any, read: Callable[[str], Any], widen: bool) -> Any:
    if not about:
        return read(path)
    kind = KINDS[about["kind"]]
    found = {}
    for field in fields(kind):
        if field.metadata.get("static"):
            found[field.name] = int(about[field.name])
        else:
            known, name = about.get(field.name), f"{path}/{field.name}"
            found[field.name] = None if known is None else _build(name, known, read, widen)
    leaf = kind(**found)
    widen = widen and isinstance(leaf, Int4Groups) and platform() == "cpu"
    return jax.jit(type(leaf).widened)(leaf) if widen else leaf


def misfits(flat: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Return the paths of quantised weights that are not of this config's shapes."""
    known, letters = sites(config), tree.flatten(api.axes(config))
    shapes = tree.flatten(api.abstract(config))
    wrong = []
    for path, leaf in flat.items():
        if not is_quantised(leaf):
            continue
        try:
            if path in known:
                site = known[path]
                equation = f"BT{site.inner},{site.letters}->BT{site.outer}"
                x = jax.ShapeDtypeStruct((*site.stack, 1, 1, *site.sizes(site.inner)), "float32")
                one = lambda leaf, x, e=equation: contract(e, x, leaf, dtype="float32")  # noqa: E731
                found = jax.eval_shape(jax.vmap(one) if site.stack else one, leaf, x)
                fits = found.shape == (*site.stack, 1, 1, *site.sizes(site.outer))
            else:
                fits = letters.get(path) == "VD" and leaf.values.shape == shapes[path].shape
                ids = jnp.zeros(1, jnp.int32)
                jax.eval_shape(lambda leaf, i=ids: lookup(leaf, i, dtype="float32"), leaf)
        except (TypeError, ValueError, AttributeError, AssertionError):
            fits = False
        if not fits:
            wrong.append(path)
    return wrong
