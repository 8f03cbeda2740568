"""Named activations: returned as taps, and changed by interventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import ConfigError

# By the path of an activation, a function (activation, layer) -> activation. It is a pytree
# (`jax.tree_util.Partial`), so that a scan takes it with the arrays that it holds.
Interventions = Mapping[str, Callable[..., jax.Array]]

Place = tuple[Interventions | None, Any]  # interventions on activations, and the layer's number


def tap(
    module: nn.Module,
    name: str,
    x: jax.Array,
    interventions: Interventions | None,
    layer: Any = None,
) -> jax.Array:
    """Return an activation after its intervention, as the tap `name` of the module shows it.

    layer: number of the layer, for an activation of one. Raises ConfigError for an intervention
    that changes the shape.
    """
    path = "/".join((*module.path, name))
    change = (interventions or {}).get(path)
    if change is not None:
        new = jnp.asarray(change(x, layer))
        if new.shape != x.shape:
            raise ConfigError(
                f"interventions[{path!r}] returns {list(new.shape)} for an activation of "
                f"{list(x.shape)}; return one of the same shape"
            )
        x = new.astype(x.dtype)
    module.sow("taps", name, x)
    return x


def is_intervened(module: nn.Module, name: str, interventions: Interventions | None) -> bool:
    """Return whether an intervention changes the activation `name` of the module."""
    return "/".join((*module.path, name)) in (interventions or {})


def is_tapped(module: nn.Module) -> bool:
    """Return whether taps are returned; what only they need is not computed without."""
    return module.is_mutable_collection("taps")


def below(interventions: Interventions | None, prefix: str) -> Interventions | None:
    """Return the interventions of paths that begin with the prefix, by the rest of their paths."""
    if not interventions:
        return None
    size = len(prefix)
    return {path[size:]: one for path, one in interventions.items() if path.startswith(prefix)}
