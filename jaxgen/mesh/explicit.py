"""Models on meshes whose axes are Explicit (`jax.sharding.AxisType`).

There the type of each array says how it is spread, and an operation that could spread its result
in several ways must be told. The inside of a model is not told: the rules and the compiler lay it
out, as on a mesh of type Auto. Arguments come in as they are spread, results leave with a type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, use_abstract_mesh

from jaxgen.errors import ConfigError
from jaxgen.mesh import rules

F = TypeVar("F", bound=Callable[..., Any])
Letters = Callable[[Any, Mapping[str, Any]], Any]


def rows(result: Any, given: Mapping[str, Any] | None = None) -> Any:
    """Return the letters of results whose first axis, if they have any, is the batch."""
    return jax.tree.map(lambda x: "B" if x.ndim else "", result)


def as_given(result: Any, argument: Any, letters: Any) -> Any:
    """Return how an argument's leaves are spread, by path, for what it has become.

    letters: of leaves that it had not.
    """
    known = {path: x for path, x in jax.tree_util.tree_leaves_with_path(argument) if _is_array(x)}

    def one(path: Any, leaf: Any, words: str) -> Any:
        before = known.get(path)
        alike = before is not None and before.ndim == leaf.ndim
        return PartitionSpec(*(part or None for part in _parts(before))) if alike else words

    return jax.tree_util.tree_map_with_path(one, result, letters)


def with_cache(result: Any, given: Mapping[str, Any]) -> Any:
    """Return the letters of `rows`, and how the argument `cache` was spread for the result's."""
    words = rows(result)
    return words._replace(cache=as_given(result.cache, given["cache"], words.cache))


def auto_inside(
    like: str | tuple[str, ...] | None, letters: Letters = rows, *, table: rules.Rules = rules.USED
) -> Callable[[F], F]:
    """Return the decorator of a function that the compiler lays out on Explicit axes too.

    Without such axes the function is called as it is. Axes of other types stay what they are.

    Args:
        like: the argument [B], [B, T] or [B, T, ...], or a tree of them, whose layout the axes B
            and T of the results have, or several, of which the first that is given counts; None:
            they are laid out by the rules.
        letters: (result, arguments by name) -> a tree like the result, of the letters of each
            leaf's first axes, or of a PartitionSpec. Other letters than B and T are laid out by
            the rules, where the mesh has their axes; the rest is whole.
        table: these rules.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        names = (like,) if isinstance(like, str) else like or ()

        @wraps(function)
        def called(*args: Any, **options: Any) -> Any:
            mesh = _explicit((args, options))
            if mesh is None:
                return function(*args, **options)
            given = signature.bind(*args, **options).arguments
            axes = _axes(mesh)
            auto = mesh.update_axis_types(dict.fromkeys(axes, AxisType.Auto))
            with use_abstract_mesh(auto):
                inner_args, inner_options = jax.tree.map(_enter, (args, options))
                try:
                    result = function(*inner_args, **inner_options)
                except ValueError as error:
                    if "should match the aval mesh" not in str(error):
                        raise
                    raise ConfigError(_closure(function, given)) from error
            rows = next((given[name] for name in names if given.get(name) is not None), None)
            lay = dict(table) | ({} if rows is None else _rows_of(rows))

            def leave(leaf: Any, words: str | PartitionSpec) -> Any:
                if not isinstance(leaf, jax.Array):
                    return leaf
                if isinstance(words, str):
                    full = words[: leaf.ndim].ljust(leaf.ndim, ".")
                    words = rules.spec(full, leaf.shape, lay, axes)
                return jax.reshard(leaf, NamedSharding(mesh, words))

            return jax.tree.map(leave, result, letters(result, given))

        return cast(F, called)

    return decorate


def _explicit(arguments: Any) -> AbstractMesh | None:
    """Return the mesh with Explicit axes that is in force, or that an argument lies on."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        return mesh if _axes(mesh) else None
    for leaf in jax.tree.leaves(arguments):
        own = jax.typeof(leaf).sharding.mesh if _is_array(leaf) else mesh
        if not own.empty and _axes(own):
            return cast(AbstractMesh, own)
    return None


def _axes(mesh: Any) -> dict[str, int]:
    """Return the Explicit axes with their sizes."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in types if kind == AxisType.Explicit}


def _enter(leaf: Any) -> Any:
    """Return an argument without a layout in its type; where its parts lie does not change."""
    return jax.reshard(leaf, PartitionSpec()) if _is_array(leaf) else leaf


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)


def _rows_of(argument: Any) -> dict[str, tuple[str, ...]]:
    """Return the mesh axes of B and T."""
    leaf = next((x for x in jax.tree.leaves(argument) if getattr(x, "ndim", 0)), None)
    parts = () if leaf is None else _parts(leaf)
    return dict(zip("BT", (*parts, (), ()), strict=False))


def _parts(leaf: Any) -> tuple[tuple[str, ...], ...]:
    """Return the mesh axes of each axis of an array."""
    if not _is_array(leaf):
        return ((),) * leaf.ndim
    spec = jax.typeof(leaf).sharding.spec
    each = ((part,) if isinstance(part, str) else tuple(part or ()) for part in spec)
    return (*each, *((),) * (leaf.ndim - len(spec)))


def _closure(function: Any, given: Mapping[str, Any]) -> str:
    names = [name for name, value in given.items() if inspect.isroutine(value)] or ["a function"]
    return (
        f"{function.__name__}: {' or '.join(names)} reads arrays of its surroundings that lie on "
        f"Explicit axes of the mesh; hand them in as arguments, jax.tree_util.Partial(function, "
        f"arrays), or use a mesh of AxisType.Auto"
    )
