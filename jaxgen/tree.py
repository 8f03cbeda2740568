"""Nested dicts addressed by paths such as "layers/attn/q"; patterns are shell globs on the path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from jaxgen.errors import ConfigError, nearest

Tree = Mapping[str, Any]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Return {"a/b": leaf} for a nested dict, in the dict's own order; empty dicts vanish."""
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}/")
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict whose `flatten` is `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_paths(function: Callable[..., Any], tree: Tree, *others: Tree) -> dict[str, Any]:
    """Return the tree of `function(path, leaf, *other_leaves)`; all trees share one structure."""
    flats = [flatten(other) for other in others]
    return unflatten(
        {
            path: function(path, leaf, *(flat[path] for flat in flats))
            for path, leaf in flatten(tree).items()
        }
    )


def match(path: str, patterns: Iterable[str]) -> bool:
    """Return whether any glob of `patterns` matches the whole path; "*" also crosses "/"."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def check_patterns(field: str, patterns: Iterable[str], params: Tree) -> None:
    """Raise ConfigError for the first glob that matches no path of `params`."""
    paths = list(flatten(params))
    for pattern in patterns:
        if not any(match(path, (pattern,)) for path in paths):
            raise ConfigError(
                f"{field}={pattern!r} matches no parameter{nearest(pattern, paths)}; "
                f"paths look like {paths[0]!r}"
            )


def count(tree: Tree) -> int:
    """Return the number of scalars in a tree of arrays or shapes."""
    return sum(prod(leaf.shape) for leaf in flatten(tree).values())


def nbytes(tree: Tree) -> int:
    """Return the bytes that the arrays (or shapes) of a tree take, unsharded."""
    return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in flatten(tree).values())
