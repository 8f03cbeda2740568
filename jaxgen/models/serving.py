"""How parameters lie for decoding, where each weight is read once a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import tree
from jaxgen.config import ModelConfig, Weights
from jaxgen.mesh import place
from jaxgen.models.api import Params, axes
from jaxgen.nn.stack import gains_in_line
from jaxgen.nn.stack import in_line as taken_apart
from jaxgen.nn.stack import stacked as put_together
from jaxgen.nn.weight import STACK_AXIS
from jaxgen.ops.contract import Turned
from jaxgen.ops.in_line import InLine
from jaxgen.ops.int8 import Int8
from jaxgen.ops.joined import Part, joined, opened

COPIED = 0.25  # of the memory of a device that has its own


def in_line(params: Params, config: ModelConfig) -> Params:
    """Return the parameters as decoding reads them fastest here; those given if that is the same.

    On a CPU and a GPU the layers come apart from their stack, once, instead of a copy of each layer
    for each token; on a GPU only where that copy of all takes a small share of its memory. Only
    `apply` and `hidden` without a key take the result.
    """
    steps = config.layers // len(config.pattern)
    found: Any = params.get("layers")
    if steps < 1 or isinstance(found, InLine) or not gains_in_line(found, config):
        return params
    room = place.memory()
    if room is not None and tree.nbytes(found) > COPIED * room:
        return params
    return params | {"layers": taken_apart(found)}


def is_in_line(params: Params) -> bool:
    """Return whether layers are compiled one after another; then a cache is best `in_line` too."""
    return isinstance(params.get("layers"), InLine)


def ready(params: Params, config: ModelConfig, *, weights: Weights = "plain") -> Params:
    """Return the parameters as decoding reads them fastest here; call it once, outside of jit.

    Matrices and tables have the type that they are multiplied in. They are `in_line`, and on a CPU
    then each matrix of a layer is copied to lie as its transpose, those that meet the same input in
    one piece (`ops/joined.py`).
    weights: "int8" rounds those matrices and the tables of tokens to a byte each (`ops/int8.py`).
    """
    letters = axes(config)
    if weights == "int8":
        params = _changed(params, letters, _int8)
    elif jnp.dtype(config.compute_dtype).itemsize < jnp.dtype(config.param_dtype).itemsize:
        params = _changed(params, letters, partial(_cast, config.compute_dtype))
    apart = in_line(params, config)
    if apart is params or place.platform() != "cpu":
        return apart
    turned = partial(jax.tree.map, _turned, letters["layers"])
    steps = (_together(turned(step)) for step in apart["layers"].steps)
    return apart | {"layers": InLine(tuple(steps))}


# How many axes of a layer's matrices are summed over.
INNER = {"DNH": 1, "DKH": 1, "NHD": 2, "DF": 1, "FD": 1}
TABLES = ("VD", "SD")  # of tokens and positions
TOGETHER = {"attn": ("q", "k", "v"), "feed": ("up", "gate")}  # with the same input, by module
READ = ("layers", "rest", "embed", "unembed")  # once a token


def _turned(letters: str, leaf: Any) -> Any:
    inner = INNER.get(letters.removeprefix(STACK_AXIS))
    return leaf if inner is None or isinstance(leaf, Int8) else Turned.of(leaf, inner)


def _together(tree: Any) -> Any:
    found = {}
    for name, node in tree.items():
        names = TOGETHER.get(name)
        if names and all(one in node for one in names):
            node = joined(node, names)
        found[name] = _together(node) if isinstance(node, Mapping) else node
    return found


def _changed(params: Params, letters: Params, change: Callable[[str, Any], Any]) -> Params:
    parts = [part for part in READ if part in params and not isinstance(params[part], InLine)]
    return params | {part: jax.tree.map(change, letters[part], params[part]) for part in parts}


def _cast(dtype: str, letters: str, leaf: Any) -> Any:
    """Return a leaf as its products read it, once instead of for each token."""
    one = letters.removeprefix(STACK_AXIS)
    if hasattr(leaf, "contract") or not (one in INNER or one in TABLES):
        return leaf
    return leaf.astype(dtype) if jnp.dtype(dtype).itemsize < leaf.dtype.itemsize else leaf


@partial(jax.jit, static_argnums=0)
def _int8(letters: str, leaf: Any) -> Any:
    one = letters.removeprefix(STACK_AXIS)
    if one == "VD":
        return Int8.of_turned(leaf, 1)
    if one not in INNER:
        return leaf
    form = partial(Int8.of, inner=INNER[one])
    return form(leaf) if one == letters else jax.vmap(form)(leaf)


def _back(leaf: Any) -> Any:
    leaf = leaf.alone() if isinstance(leaf, Part) else leaf
    return leaf.back() if isinstance(leaf, Turned) else leaf


def stacked(params: Params) -> Params:
    """Return parameters in the shapes of `abstract` and `axes`, whatever `ready` made of them."""
    found = params.get("layers")
    if not isinstance(found, InLine):
        return params
    steps = (
        jax.tree.map(_back, opened(step), is_leaf=lambda leaf: isinstance(leaf, Part | Turned))
        for step in found.steps
    )
    return params | {"layers": put_together(InLine(tuple(steps)))}
