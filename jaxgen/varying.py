"""Values inside `jax.shard_map`, whose types say over which mesh axes they vary."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")


def vary_alike(args: T) -> T:
    """Return a tree of arrays that vary over the same axes of a shard_map.

    What does not vary gets its cotangent summed over the axes, as JAX does it for its own
    operations.
    """
    axes = frozenset().union(*map(_axes, jax.tree.leaves(args)))
    return jax.tree.map(lambda x: _vary(x, axes), args) if axes else args


def while_loop(going: Callable[[Any], Any], body: Callable[[T], T], begun: T) -> T:
    """Return `lax.while_loop`, begun with values that vary as those that the body returns."""
    return lax.while_loop(going, body, _settled(body, begun))


def fori_loop(low: Any, high: Any, body: Callable[[Any, T], T], begun: T) -> T:
    """Return `lax.fori_loop`, begun with values that vary as those that the body returns."""
    return lax.fori_loop(low, high, body, _settled(partial(body, jnp.asarray(low)), begun))


def scan(body: Callable[[Any, Any], tuple[Any, Any]], begun: Any, xs: Any) -> tuple[Any, Any]:
    """Return `lax.scan`, begun with values that vary as those that the body returns."""

    def first(state: Any) -> Any:
        return body(state, jax.tree.map(lambda x: x[0], xs))[0]

    return lax.scan(body, _settled(first, begun), xs)


def _settled(body: Callable[[T], T], begun: T) -> T:
    """Return the values that vary as widely as any number of steps makes them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.manual_axes:
        return begun
    leaves, tree = jax.tree.flatten(begun)
    while True:  # one value's axes may reach another a step later
        outputs = jax.make_jaxpr(body)(tree.unflatten(leaves)).out_avals
        wider = [_axes(x) | new.mat.varying for x, new in zip(leaves, outputs, strict=True)]
        if wider == [*map(_axes, leaves)]:
            return tree.unflatten(leaves)
        leaves = [_vary(x, axes) for x, axes in zip(leaves, wider, strict=True)]


def _axes(x: Any) -> frozenset[str]:
    return frozenset(jax.typeof(x).mat.varying)


def _vary(x: Any, axes: frozenset[str]) -> Any:
    rest = axes - _axes(x)
    return lax.pcast(x, tuple(sorted(rest)), to="varying") if rest else x
