"""Settings: frozen dataclasses to YAML and back, strictly, with dotted overrides.

A settings class is a frozen dataclass of `bool`, `int`, `float`, `str`, `Path`, `Literal[...]`,
`X | None`, `tuple[T, ...]`, `dict[str, T]` and further such classes; a key is documented by
`option(text, default)`. Every refusal is a `ConfigError` that names the key path, the value
and the remedy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxgen import settings_yaml
from jaxgen.errors import ConfigError, nearest

T = TypeVar("T")
REQUIRED = "required"

read = settings_yaml.read


def option(text: str, default: Any) -> Any:
    """Return a dataclass field with its default and the sentence that documents its key."""
    return dataclasses.field(default=default, metadata={"help": text})


def override(mapping: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `mapping` with each "a.b=VALUE" applied in order; VALUE is read as YAML.

    A section given whole (`train={steps: 3}`) replaces the section.
    """
    result = dict(mapping)
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(
                f"override {assignment!r} has no value; write KEY=VALUE, as in train.steps=100"
            )
        keys = dotted.strip().split(".")
        if not all(key and key == key.strip() for key in keys):
            raise ConfigError(
                f"override {assignment!r} has no key before '='; write train.steps=100, for example"
            )
        if not text.strip():
            raise ConfigError(
                f"override {assignment!r} is empty; write {dotted}=null or {dotted}=''"
            )
        value = settings_yaml.parse(text, name=f"override {assignment!r}")
        result = _assign(result, keys, value, assignment)
    return result


def _assign(mapping: Mapping[str, Any], keys: list[str], value: Any, assignment: str) -> dict:
    key, rest = keys[0], keys[1:]
    if not rest:
        return {**mapping, key: value}
    section = mapping.get(key)
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"override {assignment!r}: {key!r} is {section!r}, not a section of keys")
    return {**mapping, key: _assign(section or {}, rest, value, assignment)}


def build(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Return an instance of the dataclass `cls` from a plain mapping, refusing what is not exact.

    `where` is the key path of `mapping`, for messages. Integers are accepted for floats; nothing
    else is converted. Raises ConfigError, also for a ValueError of the class's own `__post_init__`.
    """
    return _section(cls, mapping, where, [row[0] for row in fields_help(cls)])


def as_dict(instance: Any) -> dict[str, Any]:
    """Return the settings as plain dicts, lists and scalars, in the order of the fields."""
    return {f.name: _plain(getattr(instance, f.name)) for f in _fields(type(instance))}


def dump(instance: Any) -> str:
    """Return YAML text of every field; reading and building it gives an equal instance."""
    return settings_yaml.write(as_dict(instance))


def fingerprint(instance: Any) -> str:
    """Return the sha256 (hex) of the settings' canonical JSON; equal settings have equal ones."""
    text = json.dumps(_canonical(as_dict(instance)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def diff(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in `a`, value in `b`) of each differing field; None if absent."""
    return _differences(as_dict(a), as_dict(b), "")


def fields_help(cls: type) -> list[tuple[str, str, Any, str]]:
    """Return (dotted key, type in words, default or "required", help) of every leaf of `cls`."""
    return _rows(cls, "", None)


def _rows(cls: type, prefix: str, instance: Any) -> list[tuple[str, str, Any, str]]:
    hints, rows = typing.get_type_hints(cls), []
    for field in _fields(cls):
        default = _default(field) if instance is None else getattr(instance, field.name)
        hint, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            # A section's default instance knows better than the section's class.
            inner = default if dataclasses.is_dataclass(default) else None
            rows += _rows(typing.cast(type, hint), f"{key}.", inner)
        else:
            rows.append((key, _words(hint), _plain(default), field.metadata.get("help", "")))
    return rows


def _fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    # 1 and 1.0 are equal settings of a float field, so they must have one spelling.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _differences(a: dict, b: dict, prefix: str) -> list[tuple[str, Any, Any]]:
    found = []
    for key in [*a, *(key for key in b if key not in a)]:
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append((prefix + key, left, right))
    return found


def _section(cls: type[T], mapping: Any, where: str, known: list[str]) -> T:
    # A section whose keys are all commented out reads as null: it means the defaults.
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{_at(where, mapping)} is {_kind(mapping)}; it wants keys and values")
    hints, fields = typing.get_type_hints(cls), _fields(cls)
    for key in mapping:
        if key not in {field.name for field in fields}:
            raise ConfigError(_unknown(str(key), where, [f.name for f in fields], known))
    values = {}
    for field in fields:
        path = _join(where, field.name)
        if field.name in mapping:
            values[field.name] = _value(hints[field.name], mapping[field.name], path, known)
        elif _default(field) is REQUIRED:
            hint = hints[field.name]
            if not dataclasses.is_dataclass(hint):
                raise ConfigError(f"{path} is missing and has no default; it wants {_words(hint)}")
            values[field.name] = _section(typing.cast(type, hint), {}, path, known)
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _unknown(key: str, where: str, names: list[str], known: list[str]) -> str:
    hint = nearest(key, names)
    # A key in the wrong section is the commonest slip after a typing error.
    elsewhere = [path for path in known if path.rpartition(".")[2] == key]
    if elsewhere:
        hint = f" (did you mean {' or '.join(map(repr, elsewhere))}?)"
    hint = hint or f"; the keys here are {', '.join(names)}"
    return f"unknown key {_join(where, key)!r}{hint}"


def _value(hint: Any, value: Any, path: str, known: list[str]) -> Any:
    if dataclasses.is_dataclass(hint):
        return _section(typing.cast(type, hint), value, path, known)
    origin, arms = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin not in _READERS:
        raise TypeError(f"{path}: settings cannot hold {hint!r}")
    return _READERS[origin](arms, value, path, known)


def _read_bool(arms: Any, value: Any, path: str, known: list[str]) -> bool:
    if not isinstance(value, bool):
        raise _wrong(path, value, "true or false")
    return value


def _read_int(arms: Any, value: Any, path: str, known: list[str]) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(path, value, "an integer")
    return value


def _read_float(arms: Any, value: Any, path: str, known: list[str]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(path, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{path}={number} is not finite; write an ordinary number")
    return number


def _read_str(arms: Any, value: Any, path: str, known: list[str]) -> str:
    if not isinstance(value, str):
        raise _wrong(path, value, "a string")
    return value


def _read_path(arms: Any, value: Any, path: str, known: list[str]) -> Path:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise _wrong(path, value, "a path")
    return Path(value)


def _read_none(arms: Any, value: Any, path: str, known: list[str]) -> None:
    if value is not None:
        raise _wrong(path, value, "null")


def _read_choice(arms: Any, value: Any, path: str, known: list[str]) -> Any:
    for choice in arms:
        if type(choice) is type(value) and choice == value:
            return choice
    choices = ", ".join(map(_spell, arms))
    raise ConfigError(f"{_at(path, value)} is not one of {choices}{nearest(str(value), arms)}")


def _read_union(arms: Any, value: Any, path: str, known: list[str]) -> Any:
    if value is None and types.NoneType in arms:
        return None
    real = [arm for arm in arms if arm is not types.NoneType]
    if len(real) == 1:  # the arm's own message is better than "none of these"
        return _value(real[0], value, path, known)
    # An integer must not become a float merely because `float` is named first.
    for arm in sorted(real, key=lambda arm: arm is not type(value)):
        try:
            return _value(arm, value, path, known)
        except ConfigError:
            continue
    raise _wrong(path, value, " or ".join(map(_words, arms)))


def _read_tuple(arms: Any, value: Any, path: str, known: list[str]) -> tuple:
    if not isinstance(value, list | tuple):
        raise _wrong(path, value, f"a {_words(tuple[arms])}")
    if arms[-1] is not Ellipsis and len(arms) != len(value):
        raise ConfigError(f"{_at(path, value)} has {len(value)} items; it wants {len(arms)}")
    kinds = [arms[0]] * len(value) if arms[-1] is Ellipsis else arms
    pairs = zip(kinds, value, strict=True)
    return tuple(_value(arm, item, f"{path}[{i}]", known) for i, (arm, item) in enumerate(pairs))


def _read_dict(arms: Any, value: Any, path: str, known: list[str]) -> dict:
    if not isinstance(value, Mapping):
        raise _wrong(path, value, f"a mapping of names to {_words(arms[1])}")
    return {
        _read_str((), key, f"{path}'s key", known): _value(arms[1], item, f"{path}.{key}", known)
        for key, item in value.items()
    }


_READERS: dict[Any, Callable[[Any, Any, str, list[str]], Any]] = {
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
    dict: _read_dict,
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


def _wrong(path: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{_at(path, value)} is {_kind(value)}; {_remedy(value, wanted)}")


def _remedy(value: Any, wanted: str) -> str:
    spoken = {"yes": "true", "on": "true", "no": "false", "off": "false"}
    if wanted == "a string" and isinstance(value, bool | int | float):
        return f"quote it to make it a string: '{_spell(value)}'"
    if wanted == "an integer" and isinstance(value, float) and value.is_integer():
        return f"write the integer {int(value)}" if abs(value) < 1e18 else "it wants an integer"
    if wanted == "true or false" and str(value).lower() in spoken:
        return f"write {spoken[str(value).lower()]}"
    if isinstance(value, str) and wanted in ("an integer", "a number", "true or false"):
        bare = settings_yaml.scalar(value.strip().replace("_", ""))
        fits = {"an integer": int, "a number": (int, float), "true or false": bool}[wanted]
        if isinstance(bare, fits) and isinstance(bare, bool) == (wanted == "true or false"):
            return f"write {_spell(bare)}"
    return f"it wants {wanted}"


def _spell(value: Any) -> str:
    """Return the value as a config spells it, in short."""
    text = value if isinstance(value, str) else json.dumps(_plain(value), ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(path: str, value: Any) -> str:
    shown = repr(_spell(value)) if isinstance(value, str) else _spell(value)
    return f"{path or 'the config'}={shown}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _words(hint: Any) -> str:
    """Return a type as a reader of `--help` would say it."""
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(_spell, arms))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_words, arms))
    if origin is tuple:
        inner = _words(arms[0]) if arms[-1] is Ellipsis else ", ".join(map(_words, arms))
        return f"list of {inner}"
    if origin is dict:
        return f"mapping of names to {_words(arms[1])}"
    return "null" if hint is types.NoneType else getattr(hint, "__name__", str(hint)).lower()
