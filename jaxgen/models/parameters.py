"""The parameters of a model: drawn, their shapes and axes, and whether given ones are its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jaxgen import arguments, tree
from jaxgen.arguments import Call
from jaxgen.config import ModelConfig
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError
from jaxgen.mesh.place import manual
from jaxgen.models import layout as layouts
from jaxgen.nn.transformer import Inputs, Part, Transformer
from jaxgen.nn.weight import STACK_AXIS
from jaxgen.ops.memory import Memory

Params = dict[str, Any]


def fits(path: str, params: Params, call: Call) -> None:
    """Raise ConfigError unless the parameters, where arrays, are those of the call's config."""
    _fits(path, params, call.given["config"])


def fits_draft(path: str, params: Params, call: Call) -> None:
    """Raise ConfigError unless the parameters are those of the call's `draft_config`."""
    _fits(path, params, call.given["draft_config"])


def _fits(path: str, params: Params, config: Any) -> None:
    if not isinstance(config, ModelConfig):  # which its own line will say
        return
    wanted = _shapes_of(config)
    shapes = {p: getattr(leaf, "shape", None) for p, leaf in tree.flatten(params).items()}
    # Code written per device sees its own part of an array that devices share.
    if shapes == wanted or manual():
        return
    opaque = tuple(f"{name}/" for name, shape in shapes.items() if shape is None)
    for name in sorted(wanted.keys() | shapes.keys()):
        if f"{name}/".startswith(opaque):
            continue
        if wanted.get(name) != shapes.get(name):
            have, expected = shapes.get(name, "absent"), wanted.get(name, "nothing")
            raise ConfigError(
                f"{path} are of another config: {name} is {have} instead of {expected}; "
                f"give the config that they were made or loaded with"
            )


@lru_cache(maxsize=64)
def _shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in tree.flatten(abstract(config)).items()}


@arguments.checked
@compile_once
@layouts.stored(lambda config: axes(config))
def init(config: ModelConfig, key: PRNGKeyArray) -> Params:
    """Return freshly initialised parameters.

    Args:
        config: of the model; static under jit.
        key: decides every number; a weight's own key depends on its path alone.

    Returns:
        A plain nested dict of arrays, with paths like "layers/attn/q", whose first axis counts the
        layers. Raises ConfigError without a vocab_size.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> jaxgen.init(config, jax.random.key(0))["layers"]["attn"]["q"].shape
    (2, 8, 2, 4)
    """
    return _unboxed(_boxed(config, {"params": key}))


@arguments.checked
def abstract(config: ModelConfig) -> Params:
    """Return the parameters as ShapeDtypeStructs, without memory, for a model of any size.

    Args:
        config: of the model. Raises ConfigError without a vocab_size.

    Returns:
        The tree of `init`, of shapes and dtypes.

    >>> jaxgen.abstract(jaxgen.preset("llama-3.1-405b"))["layers"]["attn"]["q"].shape
    (126, 16384, 128, 128)
    """
    return tree.map_paths(lambda path, box: box.value, _shapes(config))


@arguments.checked
def axes(config: ModelConfig) -> Params:
    """Return each parameter's logical axes.

    Args:
        config: of the model. Raises ConfigError without a vocab_size.

    Returns:
        The tree of `init`, of strings: one letter a dimension, as `jaxgen.legend` names them.

    >>> jaxgen.axes(jaxgen.preset("gpt2-124m"))["layers"]["attn"]["q"]
    'LDNH'
    """
    return tree.map_paths(lambda path, box: "".join(box.names), _shapes(config))


def active(config: ModelConfig) -> dict[str, int]:
    """Return how many numbers of each parameter one token uses, by path: of experts, its own."""
    letters, share = tree.flatten(axes(config)), 1.0
    if config.experts.number:
        share = config.experts.active / config.experts.number
    return {
        path: round(leaf.size * (share if _is_of_experts(letters[path]) else 1))
        for path, leaf in tree.flatten(abstract(config)).items()
    }


def _is_of_experts(letters: str) -> bool:
    """Return whether a weight has a part for each expert; the router, "DE", has not."""
    return letters.removeprefix(STACK_AXIS).startswith("E") and letters[-1] != "E"


@lru_cache(maxsize=64)
def _shapes(config: ModelConfig) -> Any:
    """Return the boxes of all parameters, of shapes alone: traced once a config."""
    key = jax.random.key(0)
    boxes = jax.eval_shape(lambda: _boxed(config, {"params": key, "shapes": key}))
    # Without what a mesh in force here might have added, for the next caller has another.
    return tree.map_paths(
        lambda path, box: box.replace(value=jax.ShapeDtypeStruct(box.value.shape, box.value.dtype)),
        boxes,
    )


def _boxed(config: ModelConfig, keys: dict[str, PRNGKeyArray]):
    zeros = jnp.zeros((1, 2), jnp.int32)
    inputs = read = Inputs(zeros, zeros)
    if config.stem is not None:
        places = jnp.zeros((1, config.stem.vectors), jnp.int32)
        read = Inputs(places, places, media=jnp.zeros((1, *config.stem.shape)))
    if config.vision is not None:
        read = read._replace(media=jnp.zeros((1, 1, *config.vision.stem.shape)))
    if config.topology != "encoder_decoder":
        return _initialized(config, "decode", keys, read)
    encoder = _initialized(config, "encode", keys, read)
    # A weight's key depends on its path alone, so the shared table comes out the same twice.
    state = jnp.zeros((1, 2, config.memory_width), config.compute_dtype)
    decoder = _initialized(config, "decode", keys, inputs._replace(memory=Memory(state, zeros)))
    return decoder | {"encoder": encoder["encoder"]}


def _initialized(config, part: Part, keys, inputs: Inputs) -> dict[str, Any]:
    model = Transformer(config, deterministic=True, part=part)
    return dict(model.init(keys, inputs)["params"])


def _unboxed(boxes) -> Params:
    return tree.map_paths(lambda path, box: box.value, boxes)
