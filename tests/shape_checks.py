"""What jaxtyping's import hook puts on every function and class of the package, made cheap.

jaxtyping itself checks the arguments of each call twice and makes three functions of each function
that it decorates, of closures whenever they are made: a sixth of the suite's time. Here beartype
checks a call once, and is asked to when a function is first called. What is checked is the same.
"""

import dataclasses
import functools
import types
import typing

import beartype
import jaxtyping

CHECKED = {}  # the functions that were made of one definition share what checks them
_jaxtyped = jaxtyping.jaxtyped


def install():
    """Check the calls of all functions of the package that is imported from now on."""
    jaxtyping.jaxtyped = jaxtyped
    return jaxtyping.install_import_hook("jaxgen", "beartype.beartype")


def jaxtyped(fn=None, *, typechecker=None):
    """Return fn as `jaxtyping.jaxtyped` does: its arguments and what it returns are checked."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if dataclasses.is_dataclass(fn):
        if isinstance(fn.__init__, types.FunctionType) and not hasattr(fn.__init__, "__wrapped__"):
            fn.__init__ = jaxtyped(fn.__init__)
        return fn
    if not isinstance(fn, types.FunctionType) or not fn.__annotations__:
        return fn
    if "{" in "".join(map(str, fn.__annotations__.values())):  # an axis as long as an argument says
        return _jaxtyped(fn, typechecker=beartype.beartype)
    checks = CHECKED.setdefault((fn.__module__, fn.__qualname__, fn.__code__), [])

    @functools.wraps(fn)
    def call(*args, **kwargs):
        __tracebackhide__ = True
        if not checks:
            checks.extend(_checks(fn))
        checked, shapes = checks
        if not shapes:
            return checked(*args, __beartype_func=fn, **kwargs)
        with _jaxtyped("context"):  # in which a name of an axis stands for one size
            return checked(*args, __beartype_func=fn, **kwargs)

    return call


def _checks(fn):
    """Return fn with its arguments checked, and whether shapes are among what is checked."""
    hints = {name: _resolved(hint, fn) for name, hint in fn.__annotations__.items()}
    bare = types.FunctionType(
        fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__
    )
    bare.__kwdefaults__, bare.__annotations__ = fn.__kwdefaults__, hints
    bare.__qualname__, bare.__module__ = fn.__qualname__, fn.__module__
    checked = beartype.beartype(bare)
    if checked is bare:  # nothing in its annotations can be checked
        return lambda *args, __beartype_func, **kwargs: __beartype_func(*args, **kwargs), False
    return checked, any(map(_has_shape, hints.values()))


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
