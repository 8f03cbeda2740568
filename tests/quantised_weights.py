"""Models whose matrices are quantised, in each form that files of others have."""

import jax
import numpy as np

from jaxgen.adapters.sites import sites
from jaxgen.compress.matrix import compress_matrix
from jaxgen.compress.recipe import Recipe
from jaxgen.tree import flatten, unflatten

RECIPES = {
    "int8": {"format": "int8"},
    "int8-g32": {"format": "int8", "group": 32},
    "w8a8": {"format": "int8", "activations": "int8"},
    "int4-g32": {"format": "int4", "group": 32},
    "int4-g64-zeros": {"format": "int4", "group": 64, "symmetric": False},
}


def quantise(config, params, name):
    """Return the parameters of a model whose layers are stacked, with matrices by a recipe."""
    flat, recipe = flatten(params), Recipe(**RECIPES[name])
    for path, site in sites(config).items():
        leaves = [compress_matrix(w, site, recipe, None).leaf for w in flat[path]]
        flat[path] = jax.tree.map(lambda *each: np.stack(each), *leaves)
    return unflatten(flat)
