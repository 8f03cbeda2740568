"""Reorder, repeat and rewind the rows of any cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass


def _knows(method: str):
    return lambda node: hasattr(node, method)


def take(cache: Any, rows: Int[Array, "R"]) -> Any:
    """Return the cache whose row i is row `rows[i]`.

    A node of the tree may have its own `take(rows)`. The rows of any other array are its axis 0; a
    scalar is shared by all rows.
    """

    def one(node):
        if hasattr(node, "take") and not hasattr(node, "dtype"):
            return node.take(rows)
        return node[rows] if jnp.ndim(node) else node

    return jax.tree.map(one, cache, is_leaf=_knows("take"))


def repeat(cache: Any, batch: int, times: int) -> Any:
    """Return the cache with each of its `batch` rows repeated `times` times, as jnp.repeat."""
    return take(cache, jnp.repeat(jnp.arange(batch), times))


@register_dataclass
@dataclass(frozen=True)
class Snapshots:
    """A non-rewindable cache before and after each of the last T tokens, leaves [T + 1, B, ...]."""

    states: Any


def snapshot_function(cache: Any) -> Callable[[Any], Any]:
    """Return what takes a snapshot of such a cache; the snapshot is () if the cache can rewind."""
    nodes = jax.tree.leaves(cache, is_leaf=_knows("rewind"))
    able = all(hasattr(node, "rewind") for node in nodes)
    return (lambda cache: ()) if able else (lambda cache: cache)


def with_snapshots(cache: Any, begun: Any, states: Any) -> Any:
    """Return the cache for `rewind`: its Snapshots if there are any, else the cache itself."""
    if not jax.tree.leaves(states):
        return cache
    return Snapshots(jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begun, states))


def rewind(cache: Any, back: Int[Array, "B"]) -> Any:
    """Return the cache as it was `back` tokens of each row ago.

    A cache that keeps every token is truncated (`rewind(length)`, `length`); any other is taken
    from its Snapshots. Raises ConfigError if there are none.
    """

    def one(node):
        if isinstance(node, Snapshots):
            number = jnp.arange(back.shape[0])
            return jax.tree.map(lambda x: x[len(x) - 1 - back, number], node.states)
        if hasattr(node, "rewind"):
            return node.rewind(node.length - back)
        raise ConfigError(
            f"a cache that holds a {type(node).__name__} can't go back; read with `reader(step)`, "
            f"or give the cache rewind(length) and length"
        )

    return jax.tree.map(
        one, cache, is_leaf=lambda x: isinstance(x, Snapshots) or hasattr(x, "rewind")
    )


def check_back(cache: Any, most: int) -> None:
    """Raise ConfigError unless every node of a cache can go back `most` tokens.

    A node with a limit gives it as `max_rewind`; None is no limit.
    """
    for node in jax.tree.leaves(cache, is_leaf=_knows("max_rewind")):
        least = getattr(node, "max_rewind", None)
        if least is not None and least < most:
            raise ConfigError(
                f"speculation takes back up to {most} tokens, but a ring cache of slack={least - 1}"
                f" keeps no more than {least} beyond its window; make it with slack={most - 1}"
            )
