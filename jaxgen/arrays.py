"""Arrays read against annotations: kinds of numbers, ranks, and sizes that must agree."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from jaxgen import values
from jaxgen.errors import ConfigError
from jaxgen.legend import LEGEND
from jaxgen.values import Source, is_traced

LOOKED_AT = 2**16  # numbers of an array on a device that are worth waiting for
ROWS = "B"  # the letter whose size also what lies inside an argument must have

_NAMES = {
    "integer": ("an integer", "integers"),
    "number": ("a number", "numbers"),
    "float": ("a float", "floats"),
    "bool": ("a boolean", "booleans"),
    "key": ("a key, as jax.random.key(0) makes it", "keys"),
    "uint32": ("a key", "uint32"),
    "any": ("a number", "numbers"),
}


@dataclass(frozen=True)
class Axes:
    """An array: what it holds, and the axes that it may have, such as ("", "B") or ("#B N W",).

    kind: integer, number (that or float), float, bool, key, uint32 or any. "" is a single one; "#B"
    has the size B or 1, a digit that size, "_", "..." and sums any.
    """

    kind: str
    dims: tuple[str, ...]

    def takes(self, kind: str, dtype: str) -> bool:
        """Return whether an array of that kind and dtype is of this one."""
        one_of = {"number": ("integer", "float"), "any": ("integer", "float", "bool", "key")}
        return kind in one_of.get(self.kind, (self.kind,)) or dtype == self.kind

    def words(self) -> str:
        """Return what is wanted, as a message says it."""
        one, many = _NAMES[self.kind]
        listed = (f"{many} [{', '.join(dims.split())}]" if dims else one for dims in self.dims)
        return " or ".join(listed)


@dataclass(frozen=True)
class Arrays:
    """An annotation that arrays satisfy; `others` are the arms of it that are no arrays."""

    axes: tuple[Axes, ...]
    others: tuple[Any, ...]

    @property
    def integer(self) -> bool:
        """Return whether integers are wanted, which become int32."""
        return all(one.kind == "integer" for one in self.axes)

    def words(self) -> str:
        """Return what is wanted, as a message says it."""
        # A key of the old style is taken, but nobody needs to be told to make one.
        return " or ".join(one.words() for one in self.axes if one.kind != "uint32")


@cache
def arrays_of(hint: Any) -> Arrays | None:
    """Return the annotation as Arrays; None if it takes none."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    arms = typing.get_args(hint) if union else (hint,)
    axes, others, bare = [], [], False
    for arm in arms:
        names = _axes(arm)
        if names is not None:
            axes += [names] * (names not in axes)
        elif getattr(arm, "__name__", "") in ("ndarray", "Array"):
            bare = True
        else:
            others.append(arm)
    if not axes:
        return None if not bare or others else Arrays((Axes("any", ("...",)),), ())
    return Arrays(tuple(axes), tuple(others))


def _axes(arm: Any) -> Axes | None:
    """Return the Axes that jaxtyping, or an Annotated, says."""
    for about in getattr(arm, "__metadata__", ()):
        if isinstance(about, Axes):
            return about
    if not hasattr(arm, "dim_str"):
        return None
    names = arm.dtypes if isinstance(arm.dtypes, tuple) else ()
    kinds = {"key" if name == "prng_key" else kind_of(name) for name in names}
    if names == ("uint32",):
        kind = "uint32"
    else:
        kind = kinds.pop() if len(kinds) == 1 else "number" if "bool" not in kinds else "any"
    return Axes(kind if names else "any", (arm.dim_str,))


def kind_of(dtype: str) -> str:
    """Return the kind of a dtype's name: integer, float, bool, key or another."""
    starts = {"int": "integer", "uint": "integer", "float": "float", "bfloat": "float"}
    starts |= {"bool": "bool", "key<": "key"}
    return next((kind for start, kind in starts.items() if dtype.startswith(start)), dtype)


def read_arrays(wanted: Arrays, value: Any, path: str, source: Source) -> Any:
    """Return an array, number, or None where one is wanted; ConfigError if it is none of them.

    Its axes get their sizes in `source`, where those of the arrays before it are.
    """
    for other in wanted.others:
        if value is None and other is types.NoneType:
            return None
        if other in (int, float) and isinstance(value, int | float):
            return values.read_value(other, value, path, source)
    listed = isinstance(value, list | tuple)
    array = _from_list(wanted, value, path, source) if listed else value
    if isinstance(value, bool | int | float):
        shape, dtype = (), {bool: "bool", int: "int32"}.get(type(value), "float32")
    else:
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        if not isinstance(shape, tuple) or dtype is None:
            raise source.wrong(path, value, wanted.words())
        dtype = getattr(dtype, "name", str(dtype))
    kind = kind_of(dtype)
    fitting = [dims for one in wanted.axes if one.takes(kind, dtype) for dims in one.dims]
    if not fitting:
        # A number says what it is; an array does so by the type that it is shown with.
        if not shape:
            raise source.wrong(path, value, wanted.words())
        held = _NAMES.get(kind, (dtype, dtype))[1]
        raise ConfigError(f"{source.at(path, array)} holds {held}; it wants {wanted.words()}")
    dims = next((one for one in fitting if _fits(one, shape)), None)
    if dims is None:
        axes = {0: "no axis", 1: "one axis"}.get(len(shape), f"{len(shape)} axes")
        remedy = _reshaped(wanted, fitting, path, value)
        raise ConfigError(f"{source.at(path, array)} has {axes}; {remedy}")
    bind(source, path, array, dims, shape)
    return array


def _from_list(wanted: Arrays, value: Any, path: str, source: Source) -> Any:
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        if not all(isinstance(row, list | tuple) for row in value):
            raise source.wrong(path, value, wanted.words()) from None
        said = source.at(path, value)
        raise ConfigError(f"{said} has rows of different lengths; pad them to one") from None
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if not array.size:
        array = array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise source.wrong(path, value, wanted.words())
    return array


def _fits(dims: str, shape: tuple[Any, ...]) -> bool:
    letters = dims.split()
    if any(one.startswith(("...", "*")) for one in letters):
        return len(shape) >= len(letters) - 1
    pairs = zip(letters, shape, strict=False)
    return len(letters) == len(shape) and all(int(x) == n for x, n in pairs if x.isdigit())


def _reshaped(wanted: Arrays, fitting: list[str], path: str, value: Any) -> str:
    shape = getattr(value, "shape", None)
    one_less = next((x for x in fitting if x.split()[:1] == [ROWS]), None)
    rank = len(shape) if shape is not None else 1 if isinstance(value, list | tuple) else 0
    if one_less is None or len(one_less.split()) != rank + 1:
        return f"it wants {wanted.words()}"
    row = f"[{path}]" if shape is None or not rank else f"{path}[None]"
    axes = ", ".join(["1", *one_less.split()[1:]])
    return f"it wants {wanted.words()}: give [{axes}], {row}"


def bind(source: Source, path: str, value: Any, dims: str, shape: tuple[Any, ...]) -> None:
    """Note the sizes of an array's axes; ConfigError where a letter has another size already."""
    if "..." in dims or "*" in dims:
        return
    for letter, size in zip(dims.split(), shape, strict=True):
        loose = letter.startswith("#")
        letter = letter.removeprefix("#")
        if not letter.isidentifier() or letter == "_" or (loose and size == 1):
            continue
        known, other = source.sizes.setdefault(letter, (size, path))
        # A symbol of `jax.export` may be of any size.
        if isinstance(known, int) and isinstance(size, int) and known != size:
            what = f"{letter} ({LEGEND[letter]})" if letter in LEGEND else letter
            raise ConfigError(
                f"{source.at(path, value)} has {letter}={size}, but {other} has {letter}={known}; "
                f"give both the same {what}"
            )


def agree(value: Any, path: str, source: Source) -> None:
    """Raise ConfigError for arrays inside of a value that have other rows than the call's B."""
    for name, wanted in _inside(type(value)).items():
        inner = getattr(value, name)
        if isinstance(inner, tuple):
            for i, one in enumerate(inner):
                agree(one, f"{path}.{name}[{i}]", source)
        shape = getattr(inner, "shape", None)
        if wanted is None or not isinstance(shape, tuple):
            continue
        for dims in (x for one in wanted.axes for x in one.dims if _fits(x, shape)):
            if dims.removeprefix("#")[:1] == ROWS:
                at = f"{path}.{name}"
                bind(source, at, inner, dims.split()[0], shape[:1])
            break


@cache
def _inside(kind: type) -> dict[str, Arrays | None]:
    """Return the fields of a class that can have rows, with their annotations as Arrays."""
    if not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        return {}
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except NameError:  # a class of the user's own, whose annotations are not ours to read
        return {}
    kinds = {name: arrays_of(hint) for name, hint in hints.items()}
    tuples = {name for name, hint in hints.items() if typing.get_origin(hint) is tuple}
    return {name: wanted for name, wanted in kinds.items() if wanted is not None or name in tuples}


def concrete(value: Any) -> Any:
    """Return the numbers of a value that are known, and cheap to know, as NumPy's; else None."""
    import numpy as np

    if not isinstance(value, bool | int | float | list | tuple | np.ndarray | np.generic):
        if is_traced(value) or not getattr(value, "is_fully_addressable", False):
            return None
        if value.size > LOOKED_AT or kind_of(value.dtype.name) == "key":
            return None
    numbers = np.asarray(value)
    return numbers.astype(np.float32) if numbers.dtype.kind == "V" else numbers


def as_int32(value: Any, path: str) -> Any:
    """Return integers as int32, in which ids and lengths are computed; ConfigError if too large."""
    dtype = getattr(getattr(value, "dtype", None), "name", "")
    if dtype == "int32" or kind_of(dtype) != "integer" or not hasattr(value, "astype"):
        return value
    import numpy as np

    numbers = concrete(value)
    limits = np.iinfo(np.int32)
    if numbers is not None and numbers.size:
        worst = max(int(numbers.max()), -int(numbers.min()) - 1)
        if worst > limits.max:
            raise ConfigError(f"{path} holds {worst}, which exceeds int32; give ids and lengths")
    return value.astype(np.int32)
