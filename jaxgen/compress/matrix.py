"""One matrix of a layer by a recipe, and what it costs: the error of its outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.adapters.adapter import plain
from jaxgen.adapters.sites import Site
from jaxgen.compress import masks, scaling, sweep
from jaxgen.compress.layerwise import Statistics
from jaxgen.compress.recipe import Recipe
from jaxgen.errors import ConfigError
from jaxgen.ops.grid import Grid, Steps, round_to_nearest
from jaxgen.ops.input_scaled import InputScaled
from jaxgen.ops.int4 import Int4
from jaxgen.pretrained import coded
from jaxgen.pretrained.coded import Codes


class Result(NamedTuple):
    """A weight in its new form, and its relative output errors, squared.

    error: its own; nearest: that of rounding to nearest, or of dropping the smallest, which a
    method has to beat. Without statistics every input counts alike.
    """

    leaf: Any
    error: float
    nearest: float


def check(recipe: Recipe, by_path: dict[str, Site]) -> None:
    """Raise ConfigError for a matrix that a recipe's group or pattern does not divide."""
    for path, site in by_path.items():
        width = site.num_inputs
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
    weight: Array, site: Site, recipe: Recipe, statistics: Statistics | None
) -> Result:
    """Return a weight [contracted axes, output axes] as the recipe says.

    statistics: of its inputs; None for a recipe that needs none.
    """
    assert statistics is not None or not recipe.reads_inputs
    w = weight.reshape(site.num_inputs, -1).T.astype(jnp.float32)
    numbers, nearest = prune(w, recipe, statistics)
    if recipe.format == "plain":
        leaf = numbers.T.reshape(weight.shape).astype(weight.dtype)
    else:
        leaf, nearest = _quantise(numbers, site, recipe, statistics)
        numbers = _numbers(leaf, site)
    gram = None if statistics is None else statistics.gram
    return Result(leaf, output_error(w, numbers, gram), output_error(w, nearest, gram))


def _numbers(leaf: Any, site: Site) -> Float[Array, "O I"]:
    return plain(leaf, site).reshape(site.num_inputs, -1).T


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
    w: Array, site: Site, recipe: Recipe, statistics: Statistics | None
) -> tuple[Any, Array]:
    """Return (the leaf of a matrix [O, I], the numbers that rounding to nearest makes of it)."""
    outer, inner = site.sizes(site.outer), site.sizes(site.inner)
    grid = recipe.grid
    if grid is None:
        matrix = Int4.of(w.T, 1)
        leaf = Int4(matrix.values, matrix.scale, matrix.largest.reshape(outer), len(inner))
        return leaf, _numbers(leaf, site)
    nearest, grid_steps = round_to_nearest(w, grid)
    numbers, factor = nearest, None
    if statistics is not None and recipe.method == "gptq":
        options: dict[str, Any] = {"damping": recipe.damping, "act_order": recipe.act_order}
        numbers, grid_steps = sweep.gptq(w, statistics.gram, grid, **options)
    elif statistics is not None and recipe.method == "awq":
        factor = scaling.awq(w, statistics.total, grid)
    elif statistics is not None and recipe.method == "smoothquant":
        factor = scaling.smooth(w, statistics.most, recipe.strength)
    if factor is not None:
        numbers, grid_steps = round_to_nearest(w * factor, grid)
    codes = codes_of(numbers, grid_steps, grid)
    codes = codes._replace(rounds_inputs=recipe.activations == "int8")
    leaf = coded.to_leaf(codes, outer, len(inner))
    if factor is not None:
        leaf = InputScaled(leaf, (1 / factor).reshape(inner))
    return leaf, nearest


def codes_of(numbers: Float[Array, "O I"], grid_steps: Steps, grid: Grid) -> Codes:
    """Return the integers of numbers that lie on a grid."""
    by_column = grid_steps.by_column(numbers.shape[1])
    integers = jnp.round(numbers / by_column.scale + by_column.zero).astype(jnp.int8)
    zero = None if grid.symmetric else grid_steps.zero.astype(jnp.int8)
    return Codes(integers, grid_steps.scale, zero, grid.bits)


@jax.jit
def _error(w: Array, numbers: Array, gram: Array | None) -> Array:
    def energy(x: Array) -> Array:
        return jnp.sum(x * (x if gram is None else x @ gram))

    return energy(w - numbers) / jnp.maximum(energy(w), jnp.finfo(jnp.float32).tiny)


def output_error(w: Array, numbers: Array, gram: Array | None) -> float:
    """Return |X (w - numbers)|^2 / |X w|^2 for inputs X with X^T X = gram; None: a unit matrix."""
    return float(_error(w, numbers, gram))
