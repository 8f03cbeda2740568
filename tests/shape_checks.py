"""Every call in the package is checked: types by beartype, sizes of axes in jaxtyping's scopes.

As jaxtyping's import hook does it, but that checks the arguments of each call twice, makes three
functions of each that it decorates, and compiles anew whatever the package imports while it is
imported itself: a sixth of the suite's time. Here a call is checked once, and what checks it is
made when it is first called. What is checked is the same.
"""

import ast
import dataclasses
import functools
import sys
import types
import typing
from importlib.machinery import PathFinder, SourceFileLoader

import beartype
import jaxtyping

CHECKED = {}  # the functions that were made of one definition share what checks them


class Loader(SourceFileLoader):
    """Loads a module with a decorator on each function and class, and keeps no bytecode of it."""

    def get_code(self, fullname):
        tree = ast.parse(self.get_data(self.path), self.path)
        bodies = [tree]
        while bodies:
            for node in ast.iter_child_nodes(bodies.pop()):
                if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
                    bodies.append(node)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    name = ast.copy_location(ast.Name("__checked__", ast.Load()), node)
                    # Inside of all other decorators, but a class once it is a dataclass.
                    at = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
                    node.decorator_list.insert(at, name)
        return compile(tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module):
        module.__checked__ = checked
        super().exec_module(module)


class Finder:
    """Finds the package's modules for Loader."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname.partition(".")[0] != "jaxgen":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install():
    """Check the calls of all functions of the package, which must not be imported yet."""
    assert "jaxgen" not in sys.modules
    sys.meta_path.insert(0, Finder)


def checked(fn):
    """Return a function, or the dataclass fn, whose arguments and return value are checked."""
    if dataclasses.is_dataclass(fn):
        if isinstance(fn.__init__, types.FunctionType) and not hasattr(fn.__init__, "__wrapped__"):
            fn.__init__ = checked(fn.__init__)
        return fn
    if not isinstance(fn, types.FunctionType) or not fn.__annotations__:
        return fn
    if "{" in "".join(map(str, fn.__annotations__.values())):  # an axis as long as an argument says
        return jaxtyping.jaxtyped(fn, typechecker=beartype.beartype)
    checks = CHECKED.setdefault((fn.__module__, fn.__qualname__, fn.__code__), [])

    @functools.wraps(fn)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if not checks and sys.meta_path is None:  # the program ends, and no check can be made
            return fn(*args, **kwargs)
        if not checks:
            checks[:] = _checks(fn)  # at once: another thread may do the same
        check, shapes = checks
        if not shapes:
            return check(*args, __beartype_func=fn, **kwargs)
        with jaxtyping.jaxtyped("context"):  # in which a name of an axis stands for one size
            return check(*args, __beartype_func=fn, **kwargs)

    return call


def _checks(fn):
    """Return fn with its arguments checked, and whether shapes are among what is checked."""
    hints = {name: _resolved(hint, fn) for name, hint in fn.__annotations__.items()}
    bare = types.FunctionType(
        fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__
    )
    bare.__kwdefaults__, bare.__annotations__ = fn.__kwdefaults__, hints
    bare.__qualname__, bare.__module__ = fn.__qualname__, fn.__module__
    check = beartype.beartype(bare)
    if check is bare:  # nothing in its annotations can be checked
        return lambda *args, __beartype_func, **kwargs: __beartype_func(*args, **kwargs), False
    return check, any(map(_has_shape, hints.values()))


def _resolved(hint, fn):
    """Return what a string names; Any where it can't be told, as in jaxtyping."""
    if not isinstance(hint, str):
        return hint
    try:
        bare = types.SimpleNamespace(__annotations__={"hint": hint})
        return typing.get_type_hints(bare, fn.__globals__, include_extras=True)["hint"]
    except Exception:
        return typing.Any


def _has_shape(hint):
    """Return whether there is an array of jaxtyping in a hint."""
    return hasattr(hint, "dim_str") or any(map(_has_shape, typing.get_args(hint)))
