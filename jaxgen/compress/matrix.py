"""One matrix of a layer by a recipe, and what it costs: the error of its outputs."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.adapters.adapter import plain
from jaxgen.adapters.sites import Site
from jaxgen.compress import codes, masks, scaling, sweep
from jaxgen.compress.layerwise import Statistics
from jaxgen.compress.recipe import Recipe
from jaxgen.errors import ConfigError


class Result(NamedTuple):
    """A weight in its new form, and its relative output errors, squared.

    error: its own; nearest: that of rounding to nearest, or of dropping the smallest, which a
    method has to beat. Without statistics every input counts alike.
    """

    leaf: Any
    error: float
    nearest: float


def check(recipe: Recipe, known: dict[str, Site]) -> None:
    """Raise ConfigError for a matrix that a recipe's group or pattern does not divide."""
    for path, site in known.items():
        width = prod(site.sizes(site.inner))
        if not recipe.changes(path):
            continue
        if recipe.group is not None and width % recipe.group:
            fits = [group for group in (128, 64, 32) if width % group == 0]
            remedy = f"group={fits[0]}" if fits else "group=null"
            raise ConfigError(
                f"group={recipe.group} does not divide the {width} inputs of {path}; give {remedy} "
                f"or keep=['{path}']"
            )
        if recipe.zeros and width % recipe.zeros[1]:
            raise ConfigError(
                f"pattern={recipe.pattern} does not divide the {width} inputs of {path}; add "
                f"keep=['{path}']"
            )
        if recipe.format == "int4" and width % 2:
            raise ConfigError(f"format=int4 needs an even number of inputs; {path} has {width}")


def compress_matrix(
    weight: Array, site: Site, recipe: Recipe, statistics: Statistics | None, rows: int
) -> Result:
    """Return a weight [contracted axes, output axes] as the recipe says.

    statistics: of its inputs, of so many `rows`; None for a recipe that needs none.
    """
    count = prod(site.sizes(site.inner))
    w = weight.reshape(count, -1).T.astype(jnp.float32)
    kept, others = prune(w, recipe, statistics)
    gram = None if statistics is None else statistics.gram
    if recipe.format == "plain":
        leaf = kept.T.reshape(weight.shape).astype(weight.dtype)
        return Result(leaf, output_error(w, kept, gram), output_error(w, others, gram))
    leaf, nearest = _quantise(kept, site, recipe, statistics, rows)
    got = plain(leaf, site).reshape(count, -1).T
    return Result(leaf, output_error(w, got, gram), output_error(w, nearest, gram))


def prune(
    w: Float[Array, "O I"], recipe: Recipe, statistics: Statistics | None
) -> tuple[Float[Array, "O I"], Float[Array, "O I"]]:
    """Return (a matrix with the recipe's zeros, one whose smallest numbers are zero instead)."""
    if recipe.prune == "none":
        return w, w
    where: dict[str, Any] = {"pattern": recipe.zeros, "sparsity": recipe.sparsity}
    smallest = jnp.where(masks.magnitude(w, **where), w, 0.0)
    if recipe.prune == "magnitude":
        return smallest, smallest
    assert statistics is not None
    if recipe.prune == "wanda":
        keep = masks.wanda(w, jnp.diag(statistics.gram), **where)
        return jnp.where(keep, w, 0.0), smallest
    return sweep.sparsegpt(w, statistics.gram, damping=recipe.damping, **where), smallest


def _quantise(
    w: Array, site: Site, recipe: Recipe, statistics: Statistics | None, rows: int
) -> tuple[Any, Array]:
    """Return (the leaf of a matrix [O, I], the numbers that rounding to nearest makes of it)."""
    outer, inner = site.sizes(site.outer), site.sizes(site.inner)
    grid = recipe.grid
    if grid is None:
        leaf = codes.nf4_leaf(w, outer, len(inner))
        return leaf, plain(leaf, site).reshape(w.shape[1], -1).T
    nearest, found = codes.round_to_nearest(w, grid)
    numbers, scales = nearest, None
    if recipe.method != "round":
        assert statistics is not None
        if recipe.method == "gptq":
            order = {"damping": recipe.damping, "act_order": recipe.act_order}
            numbers, found = sweep.gptq(w, statistics.gram, grid, **order)
        else:
            if recipe.method == "awq":
                scales = scaling.awq(w, statistics.total / rows, grid)
            else:
                scales = scaling.smooth(w, statistics.most, recipe.strength)
            numbers, found = codes.round_to_nearest(w * scales, grid)
    kind = {"activations": recipe.activations}
    leaf = codes.leaf(numbers, found, grid, outer, len(inner), **kind)
    return codes.with_factor(leaf, scales, inner), nearest


@jax.jit
def _error(w: Array, got: Array, gram: Array | None) -> Array:
    def energy(x: Array) -> Array:
        return jnp.sum(x * (x if gram is None else x @ gram))

    return energy(w - got) / jnp.maximum(energy(w), jnp.finfo(jnp.float32).tiny)


def output_error(w: Array, got: Array, gram: Array | None) -> float:
    """Return |X (w - got)|^2 / |X w|^2 for inputs X with X^T X = gram; None: of a unit matrix."""
    return float(_error(w, got, gram))
