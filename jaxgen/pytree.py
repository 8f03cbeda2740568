"""Frozen dataclasses as pytree nodes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import jax

from jaxgen.export import serializable

T = TypeVar("T")


def register_dataclass(kind: type[T], *, serialized_name: str | None = None) -> type[T]:
    """Register a frozen dataclass as a pytree node that compares by its type, and return it.

    For `jax.tree_util.register_dataclass` two classes with the same fields are equal as tree
    structures (jax 0.10 and 0.12), and `jax.jit` of jax 0.10 then runs one class's compiled
    program for the other, wherever their hashes meet in its cache.

    Args:
        kind: fields with metadata={"static": True} are part of the structure, all others children.
        serialized_name: of the node in exported functions; by default module and class.
    """
    about = fields(kind)  # pyright: ignore[reportArgumentType]
    names = [field.name for field in about if not field.metadata.get("static")]
    fixed = [field.name for field in about if field.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def flatten(node: T) -> tuple[tuple, tuple]:
        children = tuple(getattr(node, name) for name in names)
        return children, tuple(getattr(node, name) for name in fixed)

    def flatten_with_keys(node: T) -> tuple[tuple, tuple]:
        children, static = flatten(node)
        return tuple(zip(keys, children, strict=True)), static

    def unflatten(static: Any, children: Any) -> T:
        # JAX puts anything in the place of a leaf, which a check of arguments would refuse.
        node = object.__new__(kind)
        for name, value in zip((*names, *fixed), (*children, *static), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
    return serializable(kind, serialized_name)
