"""Quantisation-aware training: a step computes with rounded weights, and moves exact ones.

The rounded numbers are those that `jaxgen compress --recipe int8,tables=plain` (or int4) makes of
the weights at the end. Gradients pass as if nothing were rounded (Bengio et al. 2013; Jacob et al.
2018).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen import tree
from jaxgen.adapters.sites import Site, sites
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.ops.grid import Grid, round_to_nearest

GROUP = 64  # inputs that share a scale, as in the recipes of that name
GRIDS = {"int8": Grid(8, GROUP, scales="float16"), "int4": Grid(4, GROUP, scales="float16")}


def check(form: str | None, config: ModelConfig, adapter: str, objective: str) -> None:
    """Raise ConfigError for a model that can't be trained so; form: None for no rounding.

    adapter: the kind of one that is trained in the matrices' place. objective: its name.
    """
    if form is None:
        return
    lacking = {
        "adapter.kind": (adapter != "none", adapter, "give adapter.base"),
        "model.experts.number": (config.experts.number, config.experts.number, "leave it out"),
        "objective.name": (objective == "policy", objective, "exact weights write its texts"),
    }
    for name, (is_at_fault, value, remedy) in lacking.items():
        if is_at_fault:
            raise ConfigError(f"train.quantize={form} is not for {name}={value}; {remedy}")
    if config.vocab_size is None:  # a tokenizer's, which no matrix of a layer has
        config = config.replace(vocab_size=1)
    for path, site in _matrices(config).items():
        if site.num_inputs % GROUP:
            raise ConfigError(
                f"train.quantize={form} rounds weights in groups of {GROUP} inputs, but {path} has "
                f"{site.num_inputs}; change the model's widths, or leave out train.quantize"
            )


def straight_through(params: api.Params, config: ModelConfig, form: str) -> api.Params:
    """Return parameters with the matrices of layers rounded; form: a key of GRIDS.

    The gradient with regard to a rounded weight is that of the weight.
    """
    by_path = _matrices(config)

    def one(path: str, leaf: Any) -> Any:
        return _rounded(leaf, by_path[path], GRIDS[form]) if path in by_path else leaf

    return tree.map_paths(one, params)


@partial(jax.jit, static_argnames=("config", "form"))
def rounded(params: api.Params, config: ModelConfig, form: str) -> api.Params:
    """Return the parameters that a run is validated with: as they are once it is compressed."""
    return straight_through(params, config, form)


def _matrices(config: ModelConfig) -> dict[str, Site]:
    return {path: site for path, site in sites(config).items() if site.layers}


def _rounded(weight: Float[Array, "..."], site: Site, grid: Grid) -> Array:
    matrices = weight.reshape(-1, site.num_inputs, weight.size // site.num_inputs // _depth(site))
    rounded = jax.vmap(partial(_nearest, grid))(matrices.astype(jnp.float32))
    rounded = jax.lax.stop_gradient(rounded.reshape(weight.shape).astype(weight.dtype))
    return rounded + (weight - jax.lax.stop_gradient(weight))


def _depth(site: Site) -> int:
    return site.stack[0] if site.stack else 1


def _nearest(grid: Grid, matrix: Float[Array, "I O"]) -> Float[Array, "I O"]:
    return round_to_nearest(matrix.T, grid)[0].T
