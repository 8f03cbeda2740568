"""What `jax.export` asks of a program: sizes that may be symbols, trees that can be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import jax
from jax import export
from jax.errors import InconclusiveDimensionOperation

T = TypeVar("T")
Size = Any  # of an array: an int, or a symbol of `jax.export.symbolic_shape`


def are_known(*sizes: Any) -> bool:
    """Return whether all sizes are numbers: what a kernel needs that is cut to measure."""
    return all(isinstance(size, int) for size in sizes)


def surely(condition: Callable[[], bool]) -> bool:
    """Return whether a condition on sizes holds; False where it depends on a symbol's value."""
    try:
        return bool(condition())
    except InconclusiveDimensionOperation:
        return False


def serializable(kind: type[T], name: str | None = None) -> type[T]:
    """Let an exported function that takes or returns such a node be serialized, and return it.

    kind: a NamedTuple, or a class that is registered as a pytree, whose static fields JSON can
    write. name: of the type in the file; the default is that of the class.
    """
    name = name or f"{kind.__module__}.{kind.__qualname__}"
    if hasattr(kind, "_fields"):
        return export.register_namedtuple_serialization(kind, serialized_name=name)
    return export.register_pytree_node_serialization(
        kind,
        serialized_name=name,
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda written: _tuples(json.loads(written)),
    )


def make_serializable(tree: Any) -> None:
    """Let a tree be an argument or result of serialized functions, whatever its NamedTuples.

    For the states of optimizers, whose classes are Optax's or anybody's.
    """

    def visit(node: Any) -> bool:
        if isinstance(node, tuple) and hasattr(node, "_fields") and type(node) not in _KNOWN:
            _KNOWN.add(type(node))
            with suppress(ValueError):  # its owner has done it
                serializable(type(node))
        return False

    jax.tree.leaves(tree, is_leaf=visit)


_KNOWN: set[type] = set()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
