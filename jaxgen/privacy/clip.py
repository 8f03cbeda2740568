"""Gradients of bounded norm, one for each unit, their sum, and noise beside it (Abadi et al. 2016).

Everything here is a function of trees of arrays; nothing knows a model or a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray


def factors(norms: Float[Array, "..."], clip: Any) -> Float[Array, "..."]:
    """Return what gradients of these norms are multiplied with: min(1, clip / norm).

    A gradient that isn't finite counts for nothing, so that the sum changes by `clip` at most.
    """
    fitting = jnp.minimum(1.0, clip / jnp.maximum(norms, 1e-30))
    return jnp.where(jnp.isfinite(norms), fitting, 0.0)


def clipped_sum(
    grads: Any, clip: Any, groups: Callable[[Any], int] | None = None
) -> tuple[Any, Float[Array, "B"]]:
    """Return (sum over rows of the clipped gradients, norm of each row's gradient)."""
    rows, norms = clipped(grads, clip, groups)
    return jax.tree.map(lambda g: jnp.sum(g, axis=0), rows), norms


def clipped(
    grads: Any, clip: Any, groups: Callable[[Any], int] | None = None
) -> tuple[Any, Float[Array, "B"]]:
    """Return (the clipped gradient of each row, the norm that it had).

    Args:
        grads: a tree of [B, ...], the gradient of each row.
        clip: largest norm of a row's gradient.
        groups: of a key path, how many leading axes of its gradient (beyond B) number layers that
            are clipped on their own, each to clip / sqrt(number of weights); None: all at once.
    """
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    squares = jax.tree.map(lambda g: jnp.sum(g * g, axis=tuple(range(1, g.ndim))), wide)
    norms = jnp.sqrt(jax.tree.reduce(jnp.add, squares))
    if groups is None:
        scale = factors(norms, clip)
        return jax.tree.map(lambda g: scaled(scale, g), wide), norms
    leads = jax.tree_util.tree_map_with_path(lambda path, _: 1 + groups(path), wide)
    numbers = jax.tree.map(lambda g, lead: prod(g.shape[1:lead]), wide, leads)
    each = clip / sum(jax.tree.leaves(numbers)) ** 0.5

    def within(g: Array, lead: int) -> Array:
        own = jnp.sqrt(jnp.sum(g * g, axis=tuple(range(lead, g.ndim))))
        return scaled(factors(own, each), g)

    return jax.tree.map(within, wide, leads), norms


def scaled(scale: Float[Array, "B ..."], g: Float[Array, "B ..."]) -> Array:
    """Return scale * g, zero where the scale is 0, whatever g is; scale: of the first axes of g."""
    scale = scale.reshape(*scale.shape, *(1 for _ in g.shape[scale.ndim :]))
    return jnp.where(scale > 0, scale * g, 0.0)


def noise_like(tree: Any, key: PRNGKeyArray, deviation: Any) -> Any:
    """Return Gaussian noise of each leaf's shape, a function of key and place in the tree alone."""
    noise = optax.tree.random_like(key, tree, jax.random.normal, jnp.float32)
    return jax.tree.map(lambda n: deviation * n, noise)


def secret_key(key: PRNGKeyArray, seed: int) -> PRNGKeyArray:
    """Return the key of a step's noise: its key, which all may know, with a secret seed in it."""
    for half in (seed >> 32, seed & 0xFFFFFFFF):
        key = jax.random.fold_in(key, half)
    return key
