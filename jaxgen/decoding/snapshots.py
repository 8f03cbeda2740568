"""Take back the last tokens of any cache, for drafts that were rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass


def _has(method: str):
    return lambda node: hasattr(node, method)


@register_dataclass
@dataclass(frozen=True)
class Snapshots:
    """A non-rewindable cache before and after each of the last T tokens, leaves [T + 1, B, ...]."""

    states: Any


def snapshot_function(cache: Any) -> Callable[[Any], Any]:
    """Return cache -> snapshot for a cache like this one: () if it can rewind, else the cache."""
    nodes = jax.tree.leaves(cache, is_leaf=_has("rewind"))
    able = all(hasattr(node, "rewind") for node in nodes)
    return (lambda cache: ()) if able else (lambda cache: cache)


def with_snapshots(cache: Any, first: Any, states: Any) -> Any:
    """Return the argument of `rewind`: the Snapshots, `first` before `states`, or the cache."""
    if not jax.tree.leaves(states):
        return cache
    return Snapshots(jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, states))


def rewind(cache: Any, steps: Int[Array, "B"]) -> Any:
    """Return the cache as it was `steps` tokens of each row ago.

    A cache that keeps every token is truncated (`rewind(length)`, `length`); any other is taken
    from its Snapshots. Raises ConfigError if there are none.
    """

    def one(node):
        if isinstance(node, Snapshots):
            rows = jnp.arange(steps.shape[0])
            return jax.tree.map(lambda x: x[len(x) - 1 - steps, rows], node.states)
        if hasattr(node, "rewind"):
            return node.rewind(node.length - steps)
        raise ConfigError(
            f"a cache that holds a {type(node).__name__} can't go back; use "
            f"`multi_token_step(step)`, or give the cache rewind(length) and length"
        )

    return jax.tree.map(
        one, cache, is_leaf=lambda x: isinstance(x, Snapshots) or hasattr(x, "rewind")
    )


def check_rewind(cache: Any, steps: int) -> None:
    """Raise ConfigError unless every node of a cache can go back `steps` tokens.

    A node with a limit gives it as `max_rewind`; None is no limit.
    """
    for node in jax.tree.leaves(cache, is_leaf=_has("max_rewind")):
        least = getattr(node, "max_rewind", None)
        if least == 0:
            raise ConfigError(
                f"speculation takes back up to {steps} tokens, but the state of a layer of the "
                f"delta rule, as a {type(node).__name__} here holds it, can't go back; decode "
                f"without a draft"
            )
        if least is not None and least < steps:
            raise ConfigError(
                f"speculation takes back up to {steps} tokens, but a ring cache of "
                f"slack={least - 1} keeps no more than {least} beyond its window; make it with "
                f"slack={steps - 1}"
            )
