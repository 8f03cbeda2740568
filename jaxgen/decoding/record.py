"""Frozen dataclasses as pytrees that are told apart by their type."""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar

import jax

from jaxgen.export import serializable

T = TypeVar("T")


def record(kind: type[T]) -> type[T]:
    """Register a frozen dataclass as a pytree and return it; fields marked static are no leaves.

    `jax.tree_util.register_dataclass` (seen in jax 0.10.2) makes two classes with the same fields
    equal as tree structures, so now and then, where their hashes meet in jit's cache, one ran the
    other's compiled program: `eta` that of `epsilon`. Nodes registered here compare by type.
    """
    names = [field.name for field in fields(kind) if not field.metadata.get("static")]  # pyright: ignore[reportArgumentType]
    fixed = [field.name for field in fields(kind) if field.metadata.get("static")]  # pyright: ignore[reportArgumentType]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def flatten(node):
        leaves = tuple(getattr(node, name) for name in names)
        return leaves, tuple(getattr(node, name) for name in fixed)

    def flatten_with_keys(node):
        leaves, about = flatten(node)
        return tuple(zip(keys, leaves, strict=True)), about

    def unflatten(about, leaves):
        # JAX puts anything in the place of a leaf, which a check of arguments would refuse.
        node = object.__new__(kind)
        for name, value in zip((*names, *fixed), (*leaves, *about), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
    return serializable(kind)
