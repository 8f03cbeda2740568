"""Values read against annotations: choices, numbers, texts, sequences, instances.

Configs, the command line and calls of Python functions share these readers, so that a wrong value
gets one answer everywhere: a ConfigError of one line with its name, the value and the remedy.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgen import files, settings_yaml
from jaxgen.errors import ConfigError, nearest


@dataclass
class Source:
    """Where values come from, which decides how they are spelled.

    section: makes a dataclass of (its class, a mapping, its path), for a config; None in Python.
    sizes: of each axis letter that a call has bound, the size and the argument that it is of.
    """

    section: Callable[[Any, Any, str], Any] | None = None
    sizes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def spell(self, value: Any) -> str:
        """Return the value in short, as a config or a program would write it."""
        if self.section is None:
            text = _python(value)
        elif isinstance(value, str):
            text = value
        else:
            text = json.dumps(plain(value), ensure_ascii=False)
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return repr(text) if isinstance(value, str) and self.section is not None else text

    def read(self, hint: Any, value: Any, path: str) -> Any:
        """Return a value as its annotation says; see `values.read`."""
        return read_value(hint, value, path, self)

    def at(self, path: str, value: Any) -> str:
        """Return "path=value", which a message begins with."""
        return f"{path or 'the config'}={self.spell(value)}"

    def wrong(self, path: str, value: Any, wanted: str) -> ConfigError:
        """Return the error of a value that is not what is wanted."""
        said = f"{self.at(path, value)} is {kind_of(value, self.section is None)}"
        return ConfigError(f"{said}; {self._remedy(value, wanted)}")

    def _remedy(self, value: Any, wanted: str) -> str:
        spoken = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        if is_traced(value):
            return f"it wants {wanted}, known while tracing: name it in jax.jit's static_argnames"
        if wanted == "a string" and isinstance(value, bool | int | float):
            return f"quote it to make it a string: '{self.spell(value)}'"
        if wanted == "an integer" and isinstance(value, float) and value.is_integer():
            return f"write the integer {int(value)}" if abs(value) < 1e18 else "it wants an integer"
        if wanted == "true or false" and str(value).lower() in spoken:
            return f"write {self.spell(spoken[str(value).lower()] == 'true')}"
        if isinstance(value, str) and wanted in ("an integer", "a number", "true or false"):
            bare = settings_yaml.scalar(value.strip().replace("_", ""))
            fits = {"an integer": int, "a number": (int, float), "true or false": bool}[wanted]
            if isinstance(bare, fits) and isinstance(bare, bool) == (wanted == "true or false"):
                return f"write {self.spell(bare)}"
        return f"it wants {wanted}"


def read_value(hint: Any, value: Any, path: str, source: Source) -> Any:
    """Return a value as its annotation says; ConfigError, which begins with `path`, if it can't be.

    Integers are taken for floats, lists for tuples, one string for a tuple of strings, NumPy's
    scalars for numbers; in a config also mappings for dataclasses. Nothing else is converted.
    TypeError for an unknown annotation.
    """
    if source.section is not None and dataclasses.is_dataclass(hint):
        return source.section(hint, value, path)
    origin = typing.get_origin(hint) or hint
    reader = _READERS.get(origin)
    if reader is not None:
        return reader(typing.get_args(hint), value, path, source)
    if source.section is not None:
        raise TypeError(f"{path}: settings cannot hold {hint!r}")
    if isinstance(origin, typing.TypeVar):
        return value
    if not isinstance(origin, type):
        raise TypeError(f"{path}: arguments cannot be checked against {hint!r}")
    if not isinstance(value, origin):
        maker = getattr(origin, "made_by", None)
        wanted = f"a {origin.__name__}"
        raise source.wrong(path, value, f"{wanted}, as {maker}(...) makes it" if maker else wanted)
    return value


def _read_any(arms: Any, value: Any, path: str, source: Source) -> Any:
    return value


def _read_bool(arms: Any, value: Any, path: str, source: Source) -> bool:
    value = _bare(value, source, "bool")
    if not isinstance(value, bool):
        raise source.wrong(path, value, "true or false" if source.section else "True or False")
    return value


def _read_int(arms: Any, value: Any, path: str, source: Source) -> int:
    value = _bare(value, source, "int", "uint")
    if isinstance(value, bool) or not isinstance(value, int):
        raise source.wrong(path, value, "an integer")
    return int(value)


def _read_float(arms: Any, value: Any, path: str, source: Source) -> float:
    value = _bare(value, source, "int", "uint", "float", "bfloat")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise source.wrong(path, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{path}={number} is not finite; write an ordinary number")
    return number


def _bare(value: Any, source: Source, *kinds: str) -> Any:
    """Return a NumPy scalar or concrete array [] of such a type as a number of Python."""
    name = getattr(getattr(value, "dtype", None), "name", "")
    scalar = name.rstrip("0123456789") in kinds and not getattr(value, "ndim", 1)
    return value.item() if scalar and source.section is None and not is_traced(value) else value


def _read_str(arms: Any, value: Any, path: str, source: Source) -> str:
    if not isinstance(value, str):
        raise source.wrong(path, value, "a string")
    return value


def _read_path(arms: Any, value: Any, path: str, source: Source) -> Path:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise source.wrong(path, value, "a path")
    return files.to_path(value)


def _read_none(arms: Any, value: Any, path: str, source: Source) -> None:
    if value is not None:
        raise source.wrong(path, value, "null" if source.section else "None")


def _read_choice(arms: Any, value: Any, path: str, source: Source) -> Any:
    for choice in arms:
        if type(choice) is type(value) and choice == value:
            return choice
    choices = ", ".join(map(str, arms))
    near = nearest(value, arms) if isinstance(value, str) else ""
    name = getattr(value, "name", getattr(value, "__name__", None))  # of a dtype, say
    if name in arms:
        near = f"; write the string {name!r}"
    raise ConfigError(f"{source.at(path, value)} is not one of {choices}{near}")


def _read_union(arms: Any, value: Any, path: str, source: Source) -> Any:
    if value is None and types.NoneType in arms:
        return None
    real = [arm for arm in arms if arm is not types.NoneType]
    if len(real) == 1:  # the arm's own message is better than "none of these"
        return source.read(real[0], value, path)
    # An integer must not become a float merely because `float` is named first.
    for arm in sorted(real, key=lambda arm: arm is not type(value)):
        try:
            return source.read(arm, value, path)
        except ConfigError:
            continue
    near = ""
    if isinstance(value, str):
        words = [typing.get_args(arm) for arm in real if typing.get_origin(arm) is typing.Literal]
        near = nearest(value, sum(words, ()))
    none = ["null" if source.section else "None"] * (len(real) < len(arms))
    wanted = " or ".join([*map(words_of, real), *none])
    raise ConfigError(f"{source.wrong(path, value, wanted)}{near}")


def _read_tuple(arms: Any, value: Any, path: str, source: Source) -> tuple:
    if isinstance(value, str) and arms == (str, ...):
        return (value,)
    if not isinstance(value, list | tuple):
        raise source.wrong(path, value, f"a {words_of(tuple[arms] if arms else tuple)}")
    if not arms:
        return tuple(value)
    if arms[-1] is not Ellipsis and len(arms) != len(value):
        said = source.at(path, value)
        raise ConfigError(f"{said} has {len(value)} items; it wants {len(arms)}")
    kinds = [arms[0]] * len(value) if arms[-1] is Ellipsis else arms
    pairs = zip(kinds, value, strict=True)
    return tuple(source.read(arm, item, f"{path}[{i}]") for i, (arm, item) in enumerate(pairs))


def _read_sequence(arms: Any, value: Any, path: str, source: Source) -> Any:
    if not isinstance(value, collections.abc.Sequence) or isinstance(value, str | bytes):
        raise source.wrong(path, value, f"a {words_of(collections.abc.Sequence[arms])}")
    # The spellings of a vocabulary are many, and all of one type.
    if not arms or arms[0] is Any or {*map(type, value)} <= {arms[0]} & {str, bytes, int}:
        return value
    items = [source.read(arms[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    return tuple(items) if isinstance(value, tuple) else items


def _read_mapping(arms: Any, value: Any, path: str, source: Source) -> Any:
    if not isinstance(value, Mapping):
        wanted = f"a mapping of names to {words_of(arms[1])}" if arms else "a mapping"
        raise source.wrong(path, value, wanted)
    if not arms or arms[0] is Any:
        return value
    names = [source.read(arms[0], key, f"{path}'s key") for key in value]
    items = [source.read(arms[1], item, f"{path}.{key}") for key, item in value.items()]
    return dict(zip(names, items, strict=True))


def _read_callable(arms: Any, value: Any, path: str, source: Source) -> Any:
    if not callable(value):
        raise source.wrong(path, value, "a function")
    return value


_READERS: dict[Any, Callable[[Any, Any, str, Source], Any]] = {
    Any: _read_any,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    Path: _read_path,
    types.NoneType: _read_none,
    typing.Literal: _read_choice,
    typing.Union: _read_union,
    types.UnionType: _read_union,
    tuple: _read_tuple,
    dict: _read_mapping,
    collections.abc.Mapping: _read_mapping,
    collections.abc.Sequence: _read_sequence,
    collections.abc.Callable: _read_callable,
}

_KINDS = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    types.NoneType: "null",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def kind_of(value: Any, python: bool = True) -> str:
    """Return what a value is, in words."""
    if is_traced(value):
        return "a traced value"
    if python and (value is None or isinstance(value, tuple)):
        return "None" if value is None else "a tuple"
    return _KINDS.get(type(value), f"a {type(value).__name__}" if python else type(value).__name__)


def is_traced(value: Any) -> bool:
    """Return whether a value is known to a trace of JAX alone."""
    if not hasattr(value, "aval"):
        return False
    from jax.core import Tracer

    return isinstance(value, Tracer)


def plain(value: Any) -> Any:
    """Return a value of settings as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _python(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        if shape or is_traced(value):
            return f"{getattr(dtype, 'name', dtype)}{list(shape)}"
        return str(value)
    if value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | dict):
        return " ".join(repr(value).split())
    return getattr(value, "__name__", f"{type(value).__name__}(...)")


def words_of(hint: Any) -> str:
    """Return a type as a reader of `--help` would say it."""
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(str, arms))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(words_of, arms))
    if origin in (tuple, collections.abc.Sequence):
        if not arms or isinstance(arms[0], typing.TypeVar) or arms[0] is Any:
            return "list"
        dots = origin is not tuple or arms[-1] is Ellipsis
        return f"list of {words_of(arms[0]) if dots else ', '.join(map(words_of, arms))}"
    if origin in (dict, collections.abc.Mapping):
        return f"mapping of names to {words_of(arms[1])}"
    if origin is collections.abc.Callable:
        return "function"
    if hint is types.NoneType:
        return "null"
    name = getattr(hint, "__name__", str(hint))
    home = getattr(hint, "__module__", "builtins").partition(".")[0]
    return name.lower() if home in ("builtins", "pathlib") else name
