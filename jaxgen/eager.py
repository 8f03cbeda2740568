"""Public functions called without jit: compiled once for each shape, not anew at each call."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer

F = TypeVar("F", bound=Callable[..., Any])
PROGRAMS = 128  # kept of a function, by its settings; each is compiled for every shape it meets
NUMBERS = (bool, int, float, complex)
LIBRARIES = ("jax", "jaxgen", "flax", "optax", "numpy")  # whose functions read no variables


def compile_once(function: F) -> F:
    """Return the function as one that is compiled when its caller does not do so.

    Outside of jit, JAX compiles a loop anew at each call if its body is a fresh closure. Here the
    whole call is one program, found again by everything among the arguments that is no array:
    configs, functions, sizes, and the structure of the rest. Inside jit, vmap, shard_map or an
    export the function is called as it is, and the caller's program does not change.

    Arrays, and numbers inside of registered classes (the settings of a chain), may differ from call
    to call. Other arguments are compiled in. A function among them is the same while it, and all
    variables that it reads, are the same objects; they are held weakly, so that the program is
    freed with them. Where an argument cannot be hashed, nothing is kept.
    """
    programs: dict[Any, tuple[Any, Callable[[list[Any]], Any]]] = {}
    # Or `forget` would hash keys when the modules of their classes have been emptied.
    atexit.register(programs.clear)

    def compiled(form: Any, fixed: list[Any]) -> Callable[[list[Any]], Any]:
        def run(arrays: list[Any]) -> Any:
            rest = iter(arrays)
            leaves = [next(rest) if one is _ARRAY else _unwrap(one) for one in fixed]
            args, options = jax.tree.unflatten(form, leaves)
            return function(*args, **options)

        return jax.jit(run)

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        plain = [_wrap(x) for x in args], {name: _wrap(x) for name, x in options.items()}
        leaves, form = jax.tree.flatten(plain)
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        if any(map(_is_staged, arrays)):
            return function(*args, **options)
        fixed = [_ARRAY if _is_array(leaf) else leaf for leaf in leaves]
        visited: set[int] = set()
        variables = [
            one for leaf in fixed for value in _read(leaf) for one in _variables_of(value, visited)
        ]

        def forget(_: Any) -> None:
            programs.pop(key, None)

        key = form, tuple(_identity(leaf, forget) for leaf in fixed)
        try:
            known, run = programs.get(key, (None, None))
            if run is None or known != variables:
                run = compiled(form, [_weak(leaf) for leaf in fixed])
                programs[key] = variables, run
        except (TypeError, ValueError):  # not hashable, or not to be compared
            return function(*args, **options)
        if len(programs) > PROGRAMS:
            programs.pop(next(iter(programs)), None)
        return run(arrays)

    return called  # pyright: ignore[reportReturnType]


_ARRAY = object()  # stands where an array is


class _Setting:
    """An argument that is compiled in, told by its value and type: 1 is not 1.0."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._identity = (value, *map(type, value if type(value) is tuple else (value,)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Setting) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


def _wrap(value: Any) -> Any:
    """Return an argument as one leaf, no array, if it is a number, a text or a tuple of them."""
    parts = value if type(value) is tuple else (value,)
    scalars = (*NUMBERS, np.generic, str)
    return _Setting(value) if all(isinstance(x, scalars) for x in parts) else value


class _Same:
    """Objects by their identity, held weakly; equal to nothing else once one of them is gone."""

    def __init__(self, *values: Any, forget: Callable[[Any], None] | None = None) -> None:
        self._refs = [weakref.ref(value, forget) for value in values]
        self._hash = hash(tuple(map(id, values)))

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, _Same) or len(self._refs) != len(other._refs):
            return self is other
        pairs = [(a(), b()) for a, b in zip(self._refs, other._refs, strict=True)]
        return all(a is b and a is not None for a, b in pairs)

    def __hash__(self) -> int:
        return self._hash


def _identity(leaf: Any, forget: Callable[[Any], None] | None = None) -> Any:
    """Return what tells a leaf from others: its own idea of equality, or which object it is."""
    if isinstance(leaf, (*NUMBERS, str)):
        return _Setting(leaf)
    try:
        if isinstance(leaf, MethodType):
            return _Same(leaf.__func__, leaf.__self__, forget=forget)
        plain = type(leaf).__eq__ is object.__eq__ or isinstance(leaf, (jax.Array, np.ndarray))
        return _Same(leaf, forget=forget) if plain else leaf
    except TypeError:  # no weak references to it
        return leaf


def _variables_of(value: Any, visited: set[int]) -> Iterator[Any]:
    """Yield what tells the variables of a function, and those that they read, from others."""
    for leaf in jax.tree.leaves(value):
        if id(leaf) in visited:
            continue
        visited.add(id(leaf))
        yield _identity(leaf)
        if isinstance(leaf, np.ndarray):
            yield leaf.tobytes()
        for inner in _read(leaf):
            yield from _variables_of(inner, visited)


def _read(value: Any) -> Iterator[Any]:
    """Yield the variables that a function reads, or the attributes of an object."""
    if isinstance(value, (type, ModuleType, _Setting, jax.Array, np.ndarray)):
        return
    if (getattr(value, "__module__", None) or "").partition(".")[0] in LIBRARIES:
        return
    if isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, FunctionType):
        names = _names(value.__code__)
        yield from (value.__globals__[name] for name in names if name in value.__globals__)
        yield from (value.__defaults__, value.__kwdefaults__)
        yield from (cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell))
    else:
        yield from getattr(value, "__dict__", {}).values()


def _names(code: CodeType) -> list[str]:
    inner = (name for one in code.co_consts if isinstance(one, CodeType) for name in _names(one))
    return [*code.co_names, *inner]


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _weak(leaf: Any) -> Any:
    """Return a weak reference to a function, else the leaf."""
    if isinstance(leaf, MethodType):
        return weakref.WeakMethod(leaf)
    if not callable(leaf) or type(leaf).__eq__ is not object.__eq__:
        return leaf
    try:
        return weakref.ref(leaf)
    except TypeError:
        return leaf


def _unwrap(leaf: Any) -> Any:
    if isinstance(leaf, _Setting):
        return leaf.value
    return leaf() if isinstance(leaf, weakref.ref) else leaf


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, *NUMBERS))


def _is_staged(leaf: Any) -> bool:
    """Return whether a caller is being traced for a program of its own, or maps over a batch.

    Differentiation alone, outside of jit, knows its values, and may be compiled here.
    """
    return isinstance(leaf, Tracer) and leaf.to_concrete_value() is None
