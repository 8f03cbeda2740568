"""How parameters lie for decoding, where each weight is read once a token."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax

from jaxgen.config import ModelConfig
from jaxgen.models.api import Params, axes
from jaxgen.nn.stack import InLine
from jaxgen.nn.stack import in_line as taken_apart
from jaxgen.nn.stack import stacked as put_together
from jaxgen.ops.contract import Turned
from jaxgen.ops.int8 import Int8

Weights = Literal["plain", "int8"]

# Where decoding is faster with its layers in line: the least bytes of their weights, below which
# copies stay in the processor's cache, and the greatest depth, for it all has to be compiled.
IN_LINE = {"cpu": (2**22, 48)}


def in_line(params: Params, config: ModelConfig) -> Params:
    """Return the parameters as decoding reads them fastest here; those given if that is the same.

    On a CPU the layers come apart from their stack, once, instead of a copy of each layer for each
    token. Only `apply` and `hidden` without a key take the result.
    """
    steps = config.layers // len(config.pattern)
    found = params.get("layers")
    if steps < 1 or isinstance(found, InLine) or not jax.sharding.get_abstract_mesh().empty:
        return params
    least, deepest = IN_LINE.get(jax.default_backend(), (0, 0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))
    if config.layers > deepest or size < least:
        return params
    return params | {"layers": taken_apart(found)}


def ready(params: Params, config: ModelConfig, *, weights: Weights = "plain") -> Params:
    """Return the parameters as decoding reads them fastest here; call it once, outside of jit.

    They are `in_line`, and then on a CPU each matrix of a layer is copied to lie as its transpose.
    weights: "int8" rounds those matrices and the tables of tokens to a byte each (`ops/int8.py`).
    """
    if weights == "int8":
        params = _rounded(params, config)
    apart = in_line(params, config)
    if apart is params:
        return params
    letters = axes(config)["layers"]
    steps = (jax.tree.map(_turned, letters, step) for step in apart["layers"].steps)
    return apart | {"layers": InLine(tuple(steps))}


# How many axes of a layer's matrices are summed over.
INNER = {"LDNH": 1, "LDKH": 1, "LNHD": 2, "LDF": 1, "LFD": 1}
READ = ("layers", "embed", "unembed")  # once a token


def _turned(letters: str, leaf: Any) -> Any:
    plain = letters in INNER and not isinstance(leaf, Int8 | Turned)
    return Turned.of(leaf, INNER[letters]) if plain else leaf


def _rounded(params: Params, config: ModelConfig) -> Params:
    def leaf_of(letters: str, leaf: Any) -> Any:
        if letters == "VD":
            return _table(leaf)
        return _matrices(leaf, INNER[letters]) if letters in INNER else leaf

    letters = axes(config)
    return params | {
        part: jax.tree.map(leaf_of, letters[part], params[part]) for part in READ if part in params
    }


_table = jax.jit(partial(Int8.of_turned, inner=1))


@partial(jax.jit, static_argnums=1)
def _matrices(stack: Any, inner: int) -> Int8:
    return jax.vmap(partial(Int8.of, inner=inner))(stack)


def _turned_back(leaf: Any) -> Any:
    return leaf.back() if isinstance(leaf, Turned) else leaf


def stacked(params: Params) -> Params:
    """Return parameters in the shapes of `abstract` and `axes`, whatever `ready` made of them."""
    found = params.get("layers")
    if not isinstance(found, InLine):
        return params
    plain = jax.tree.map(_turned_back, found, is_leaf=lambda leaf: isinstance(leaf, Turned))
    return params | {"layers": put_together(plain)}
