"""Whole heads, feed-forward channels and layers removed by measured importance: smaller shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgen import tree
from jaxgen.compress import layerwise
from jaxgen.compress.layerwise import Statistics
from jaxgen.compress.recipe import Recipe
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.nn.stack import layer_params

HOME = "layers/"


class Importance(NamedTuple):
    """Of each layer's channels [L, F], groups of heads [L, K], and of each layer [L].

    A channel's, or group's, is the energy of what it adds to the stream; a layer's is one less the
    mean cosine of the stream before and after it (Men et al. 2024).
    """

    channels: np.ndarray
    groups: np.ndarray
    layers: np.ndarray


def check(config: ModelConfig, recipe: Recipe) -> None:
    """Raise ConfigError for sizes that a model can't be cut to."""
    sizes = {"heads": config.heads, "channels": config.F, "layers": config.layers}
    for name, most in sizes.items():
        value = getattr(recipe, name)
        if value is not None and not 1 <= value <= most:
            raise ConfigError(f"{name}={value} must be from 1 to the {most} that the model has")
    if not recipe.shrinks:
        return
    group = config.heads // config.K
    if recipe.heads is not None and recipe.heads % group:
        raise ConfigError(
            f"heads={recipe.heads} must be a multiple of {group}, the query heads of a key head"
        )
    if len(config.pattern) > 1 or config.leading or config.latent or config.kinds:
        raise ConfigError(
            "heads, channels and layers are cut of models whose layers are all of one kind; leave "
            "them out"
        )
    if recipe.heads is not None and config.positions == "alibi":
        raise ConfigError("heads with positions=alibi have a slope each; leave out heads")
    if recipe.layers is not None and config.scores.by_layer == "inverse":
        raise ConfigError("scores.by_layer=inverse counts layers; leave out layers")


def importance(params: api.Params, config: ModelConfig, rows: np.ndarray) -> Importance:
    """Return what each channel, group of heads and layer does to the stream of some rows of ids."""
    shared, by_layer = layerwise.shared_params(params), []
    stream = layerwise.embed(params, config, rows)
    for layer in range(config.layers):
        own = layer_params(params, config, layer)
        stats = layerwise.statistics(own, shared, config, layer, stream)
        after = [layerwise.run_layer(own, shared, config, layer, x) for x in stream]
        near = np.mean([float(_cosine(x, y)) for x, y in zip(stream, after, strict=True)])
        down, o = own["feed"]["down"], own["attn"]["o"]
        channels = _energies(stats["feed/down"], down.reshape(config.F, 1, -1))
        groups = _energies(stats["attn/o"], o.reshape(config.K, -1, o.shape[-1]))
        by_layer.append((channels, groups, 1 - near))
        stream = after
    return Importance(*(np.asarray(x) for x in zip(*by_layer, strict=True)))


@jax.jit
def _cosine(x: Array, y: Array) -> Array:
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return jnp.mean(jnp.sum(x * y, axis=-1) / jnp.maximum(lengths, 1e-9))


@jax.jit
def _energies(statistics: Statistics, weights: Array) -> Array:
    """Return |X_g W_g|^2 of each group g of inputs, for weights [groups, inputs, outputs]."""
    groups, width, _ = weights.shape
    blocks = statistics.gram.reshape(groups, width, groups, width)
    own = blocks[jnp.arange(groups), :, jnp.arange(groups)]
    return jnp.einsum("gid,gij,gjd->g", weights, own, weights)


def shrink(
    params: api.Params, config: ModelConfig, recipe: Recipe, measured: Importance
) -> tuple[ModelConfig, api.Params]:
    """Return a model with as many heads, channels and layers as a recipe says: the most important.

    In each layer other heads and channels may stay, as many in all of them.
    """
    keep = np.sort(np.argsort(-measured.layers, kind="stable")[: recipe.layers or config.layers])
    group = config.heads // config.K
    groups = config.K if recipe.heads is None else recipe.heads // group
    k = _most(measured.groups, groups)[keep]
    n = (k[..., None] * group + np.arange(group)).reshape(len(k), -1)
    f = _most(measured.channels, recipe.channels or config.F)[keep]
    places, letters = {"K": k, "N": n, "F": f}, tree.flatten(api.axes(config))
    flat = tree.flatten(params)
    for path, leaf in flat.items():
        if path.startswith(HOME):
            flat[path] = _cut(leaf[keep], letters[path], places)
    smaller = config.replace(
        layers=len(keep), heads=n.shape[1], kv_heads=groups, head_dim=config.H, d_ff=f.shape[1]
    )
    return smaller, tree.unflatten(flat)


def _most(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the places [L, count] of each row's largest scores, in their order."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)


def _cut(leaf: Any, letters: str, places: dict[str, np.ndarray]) -> Any:
    """Return a stacked parameter with those parts of its axes that stay, layer by layer."""
    for axis, letter in enumerate(letters):
        if letter in places:
            shape = [1] * leaf.ndim
            shape[0], shape[axis] = places[letter].shape
            leaf = jnp.take_along_axis(leaf, jnp.asarray(places[letter]).reshape(shape), axis=axis)
    return leaf
