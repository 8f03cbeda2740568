"""Parameters laid out for decoding, where each weight is read once a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import files, tree
from jaxgen.config import ModelConfig, Weights
from jaxgen.mesh import place
from jaxgen.models.api import Params, axes
from jaxgen.nn.unroll import should_unroll, stack_layers
from jaxgen.nn.unroll import unroll as unroll_layers
from jaxgen.nn.weight import STACK_AXIS
from jaxgen.ops import cpu
from jaxgen.ops.adapted import Adapted, layer_of
from jaxgen.ops.cpu.fused_weights import SIGN, FusedSlice, fuse, unfuse
from jaxgen.ops.cpu.transposed_weight import TransposedWeight
from jaxgen.ops.int8 import Int8
from jaxgen.ops.unrolled import UnrolledLayers

COPIED = 0.25  # of the memory of a device that has its own


def unroll(params: Params, config: ModelConfig) -> Params:
    """Return the parameters with unrolled layers where that decodes faster, else as they are.

    On a CPU and a GPU the layers are sliced from their stack once, instead of for each token; on a
    GPU only where a copy of all takes a small share of its memory. Only `apply` and `hidden`
    without a key take the result.
    """
    steps = (config.layers - config.leading) // len(config.pattern)
    layers: Any = params.get("layers")
    if config.weight_sets or steps < 1 or isinstance(layers, UnrolledLayers):
        return params
    if not should_unroll(layers, config):
        return params
    room = place.memory()
    if room is not None and tree.nbytes(layers) > COPIED * room:
        return params
    return params | {"layers": unroll_layers(layers)}


def is_unrolled(params: Params) -> bool:
    """Return whether layers are unrolled; then the cache should be unrolled as well."""
    return isinstance(params.get("layers"), UnrolledLayers)


def ready(params: Params, config: ModelConfig, *, weights: Weights = "plain") -> Params:
    """Return the parameters in the layout that decodes fastest; call it once, outside of jit.

    Matrices and tables are cast to the compute dtype. Layers are unrolled (`unroll`), and on a CPU
    each matrix of an unrolled layer is transposed, and fused with those that have the same input
    (`ops/cpu/fused_weights.py`). Those of experts stay as they are: a token reads few of them, by
    index.
    weights: "int8" quantises those matrices, experts' too, and the tables of tokens
    (`ops/int8.py`); leaves that are quantised already stay as they are.
    """
    params, adapters = split(params)
    return join(_ready(params, config, weights), adapters)


def _ready(params: Params, config: ModelConfig, weights: Weights) -> Params:
    letters = axes(config)
    if weights == "int8":
        params = _changed(params, letters, _int8)
    elif jnp.dtype(config.compute_dtype).itemsize < jnp.dtype(config.param_dtype).itemsize:
        params = _changed(params, letters, partial(_cast, config.compute_dtype))
    params, stacked_params = unroll(params, config), params
    if params is stacked_params or not cpu.enabled("transposed_weights"):
        return params
    fused = cpu.enabled("fused_weights")

    def change(step: Any) -> Any:
        step = jax.tree.map(_transpose, letters["layers"], step)
        step = _fuse(step) if fused else step
        return jax.tree.map(lambda x: place.laid(x) if isinstance(x, np.ndarray) else x, step)

    steps = params["layers"].steps
    here = all(map(place.is_here, jax.tree.leaves(steps)))
    changed = files.each(change, steps) if here else map(change, steps)
    put = lambda x: jax.device_put(x) if isinstance(x, np.ndarray) else x  # noqa: E731
    return params | {"layers": UnrolledLayers(jax.tree.map(put, tuple(changed)))}


# How many axes of a layer's matrices are summed over.
NUM_CONTRACTED = {"DNH": 1, "DKH": 1, "NHD": 2, "DF": 1, "FD": 1, "DZ": 1, "ZNH": 1}
NUM_CONTRACTED |= {"DKGH": 1, "KGHD": 3, "ZD": 1}
OF_EXPERTS = {"EDF": 1, "EFD": 1}
BOTH_WAYS = ("NHZ",)  # of latent attention, summed over one axis or the other: never int8
TABLES = ("VD", "SD", "VZ")  # of tokens and positions
# With the same input, by module.
FUSED = {"attn": ("q", "k", "v"), "feed": ("up", "gate"), "shared": ("up", "gate")}
READ = ("first", "layers", "rest", "embed", "per_layer", "unembed")  # once a token


def _transpose(letters: str, leaf: Any) -> Any:
    count = NUM_CONTRACTED.get(letters.removeprefix(STACK_AXIS))
    if count is None or hasattr(leaf, "contract"):
        return leaf
    # As a view, which is copied once: a program for each shape takes longer than all copies.
    return TransposedWeight.of(np.asarray(leaf) if place.is_here(leaf) else leaf, count)


def _fuse(tree: Any) -> Any:
    result = {}
    for name, node in tree.items():
        names = FUSED.get(name)
        if names and all(one in node for one in names):
            kinds = {type(node[one]) for one in names}
            if len(kinds) == 1 and hasattr(kinds.pop(), "join"):
                node = fuse(node, names)
        result[name] = _fuse(node) if isinstance(node, Mapping) else node
    return result


def _changed(params: Params, letters: Params, change: Callable[[str, Any], Any]) -> Params:
    parts = [
        part for part in READ if part in params and not isinstance(params[part], UnrolledLayers)
    ]
    return params | {part: jax.tree.map(change, letters[part], params[part]) for part in parts}


def _cast(dtype: str, letters: str, leaf: Any) -> Any:
    """Return a leaf in the dtype of its matmuls, cast once instead of for each token."""
    one = letters.removeprefix(STACK_AXIS)
    read = one in (*NUM_CONTRACTED, *OF_EXPERTS, *BOTH_WAYS, *TABLES)
    if hasattr(leaf, "contract") or not read:
        return leaf
    return leaf.astype(dtype) if jnp.dtype(dtype).itemsize < leaf.dtype.itemsize else leaf


@partial(jax.jit, static_argnums=0)
def _int8(letters: str, leaf: Any) -> Any:
    one = letters.removeprefix(STACK_AXIS)
    if one in ("VD", "VZ") and not hasattr(leaf, "contract"):
        return Int8.of_transposed(leaf, 1)
    count = (NUM_CONTRACTED | OF_EXPERTS).get(one)
    if count is None or hasattr(leaf, "contract"):
        return leaf
    form = partial(Int8.of, num_contracted=count)
    form = jax.vmap(form) if one in OF_EXPERTS else form
    return form(leaf) if one == letters else jax.vmap(form)(leaf)


def split(params: Params) -> tuple[Params, dict[str, tuple[Adapted, ...]]]:
    """Return (params without adapters, the adapters around each weight, from the inside out).

    Only of params in the shapes of `abstract`; where none has an adapter, they are handed back.
    """
    flat, found = tree.flatten(params), {}
    for path, leaf in flat.items():
        around = []
        while isinstance(leaf, Adapted):
            around.append(leaf.around(None))
            leaf = leaf.weight
        if around:
            flat[path], found[path] = leaf, tuple(reversed(around))
    return (tree.unflatten(flat) if found else params), found


def join(params: Params, adapters: Mapping[str, tuple[Any, ...]]) -> Params:
    """Return the params with adapters around their weights, by path: the inverse of `split`.

    The params may be as `ready` returns them: unrolled layers get their part of each adapter, or
    of a tuple of adapters one each.
    """
    for path, around in adapters.items():
        for adapter in around:
            params = _around(params, path.split("/"), adapter)
    return params


def _around(node: Any, path: Sequence[str], adapter: Any) -> Any:
    if isinstance(node, UnrolledLayers):
        own = adapter if isinstance(adapter, tuple) else None
        parts = (
            (step, own[i] if own else layer_of(adapter, i)) for i, step in enumerate(node.steps)
        )
        return UnrolledLayers(tuple(_around(step, path, part) for step, part in parts))
    if not path:
        return adapter.around(node)
    name, *rest = path
    if name in node:
        return node | {name: _around(node[name], rest, adapter)}
    fused = next(key for key in node if name in key.split(SIGN))
    return node | {fused: node[fused].with_adapter(fused.split(SIGN).index(name), adapter)}


def _plain(leaf: Any) -> Any:
    leaf = leaf.as_leaf() if isinstance(leaf, FusedSlice) else leaf
    return leaf.untransposed() if isinstance(leaf, TransposedWeight) else leaf


def stacked(params: Params) -> Params:
    """Return parameters in the shapes of `abstract` and `axes`: the inverse of `ready`."""
    layers = params.get("layers")
    if not isinstance(layers, UnrolledLayers):
        return params
    is_leaf = lambda leaf: isinstance(leaf, FusedSlice | TransposedWeight)  # noqa: E731
    steps = (jax.tree.map(_plain, unfuse(step), is_leaf=is_leaf) for step in layers.steps)
    return params | {"layers": stack_layers(UnrolledLayers(tuple(steps)))}
