"""How parameters lie for decoding, where each weight is read once a token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from jaxgen.config import ModelConfig, Weights
from jaxgen.models.api import Params, axes
from jaxgen.nn.stack import gains_in_line
from jaxgen.nn.stack import in_line as taken_apart
from jaxgen.nn.stack import stacked as put_together
from jaxgen.nn.weight import STACK_AXIS
from jaxgen.ops.contract import Turned
from jaxgen.ops.in_line import InLine
from jaxgen.ops.int8 import Int8
from jaxgen.ops.joined import Part, joined, opened


def in_line(params: Params, config: ModelConfig) -> Params:
    """Return the parameters as decoding reads them fastest here; those given if that is the same.

    On a CPU the layers come apart from their stack, once, instead of a copy of each layer for each
    token. Only `apply` and `hidden` without a key take the result.
    """
    steps = config.layers // len(config.pattern)
    found = params.get("layers")
    if steps < 1 or isinstance(found, InLine) or not gains_in_line(found, config):
        return params
    return params | {"layers": taken_apart(found)}


def is_in_line(params: Params) -> bool:
    """Return whether layers are compiled one after another; then a cache is best `in_line` too."""
    return isinstance(params.get("layers"), InLine)


def ready(params: Params, config: ModelConfig, *, weights: Weights = "plain") -> Params:
    """Return the parameters as decoding reads them fastest here; call it once, outside of jit.

    They are `in_line`, and then on a CPU each matrix of a layer is copied to lie as its transpose,
    those that meet the same input in one piece (`ops/joined.py`).
    weights: "int8" rounds those matrices and the tables of tokens to a byte each (`ops/int8.py`).
    """
    if weights == "int8":
        params = _rounded(params, config)
    apart = in_line(params, config)
    if apart is params:
        return params
    letters = axes(config)["layers"]
    steps = (_together(jax.tree.map(_turned, letters, step)) for step in apart["layers"].steps)
    return apart | {"layers": InLine(tuple(steps))}


# How many axes of a layer's matrices are summed over.
INNER = {"DNH": 1, "DKH": 1, "NHD": 2, "DF": 1, "FD": 1}
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


def _rounded(params: Params, config: ModelConfig) -> Params:
    letters = axes(config)
    return params | {
        part: jax.tree.map(_int8, letters[part], params[part]) for part in READ if part in params
    }


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
