"""Settings: frozen dataclasses to YAML and back, strictly, with dotted overrides.

A settings class is a frozen dataclass of `bool`, `int`, `float`, `str`, `Path`, `Literal[...]`,
`X | None`, `tuple[T, ...]`, `dict[str, T]` and further such classes; a key is documented by
`option(text, default)`. Every refusal is a `ConfigError` that names the key path, the value
and the remedy.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jaxgen import settings_yaml, values
from jaxgen.errors import ConfigError, nearest
from jaxgen.values import Source

T = TypeVar("T")
REQUIRED = "required"


def option(text: str, default: Any) -> Any:
    """Return a dataclass field with its default and the sentence that documents its key."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata={"help": text})
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
    return values.plain(instance)


def dump(instance: Any) -> str:
    """Return YAML text of every field; reading and building it gives an equal instance."""
    return settings_yaml.to_yaml(as_dict(instance))


def diff(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in `a`, value in `b`) of each differing field; None if absent."""
    return _differences(as_dict(a), as_dict(b), "")


def changed(instance: Any) -> list[str]:
    """Return the names of the fields that are not at their defaults."""
    return [f.name for f in _fields(type(instance)) if getattr(instance, f.name) != _default(f)]


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
            about = field.metadata.get("help", "")
            rows.append((key, values.words_of(hint), values.plain(default), about))
    return rows


def _fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _differences(a: dict, b: dict, prefix: str) -> list[tuple[str, Any, Any]]:
    rows = []
    for key in [*a, *(key for key in b if key not in a)]:
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            rows += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            rows.append((prefix + key, left, right))
    return rows


def _section(cls: type[T], mapping: Any, where: str, known: list[str]) -> T:
    source = Source(lambda cls, mapping, path: _section(cls, mapping, path, known))
    # A section whose keys are all commented out reads as null: it means the defaults.
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise source.wrong(where, mapping, "keys and values")
    if regrouped := getattr(cls, "regrouped", None):
        mapping = regrouped(mapping)
    hints, fields = typing.get_type_hints(cls), _fields(cls)
    for key in mapping:
        if key not in {field.name for field in fields}:
            raise ConfigError(_unknown(str(key), where, [f.name for f in fields], known))
    given = {}
    for field in fields:
        path = _join(where, field.name)
        if field.name in mapping:
            given[field.name] = values.read_value(
                hints[field.name], mapping[field.name], path, source
            )
        elif _default(field) is REQUIRED:
            hint = hints[field.name]
            if not dataclasses.is_dataclass(hint):
                wanted = values.words_of(hint)
                raise ConfigError(f"{path} is missing and has no default; it wants {wanted}")
            given[field.name] = _section(typing.cast(type, hint), {}, path, known)
    try:
        return cls(**given)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _unknown(key: str, where: str, names: list[str], known: list[str]) -> str:
    hint = nearest(key, names, prefix=_join(where, ""))
    # A key in the wrong section is the commonest slip after a typing error.
    elsewhere = [path for path in known if path.rpartition(".")[2] == key]
    if elsewhere:
        hint = f" (did you mean {' or '.join(map(repr, elsewhere))}?)"
    hint = hint or f"; the keys here are {', '.join(names)}"
    return f"unknown key {_join(where, key)!r}{hint}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
