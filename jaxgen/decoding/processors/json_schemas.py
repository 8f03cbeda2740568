"""JSON schemas as regular expressions: what they say, and what no expression can hold to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from jaxgen.errors import ConfigError, MissingPackageError

MISSING = "regex, choices and schema need outlines-core: pip install 'jaxgen[structure]'"
# Keywords by which a value is made, as outlines-core reads them.
_FOLLOWED = {
    *("type", "properties", "required", "items", "prefixItems", "minItems", "maxItems", "enum"),
    *("const", "anyOf", "oneOf", "allOf", "$ref", "minLength", "maxLength", "pattern", "format"),
    *("minProperties", "maxProperties", "additionalProperties", "minDigitsInteger"),
    *("maxDigitsInteger", "minDigitsFraction", "maxDigitsFraction", "minDigitsExponent"),
    *("maxDigitsExponent",),
}
_FORMATS = ("uri", "email", "date-time", "date", "time", "uuid", "hostname", "ipv4")
# Keywords about a schema, which allow and forbid nothing.
_REMARKS = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
    *("writeOnly", "$schema", "$id", "$comment", "$anchor", "$defs", "definitions"),
    *("contentEncoding", "contentMediaType", "nullable", "strict"),
}
# Any JSON, in the depth that an automaton is made of in well under a second: of what a schema says
# nothing of, objects and lists hold texts, numbers and words, and objects and lists of those.
_TEXT = r'"(?:[^"\\\x00-\x1F]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_SCALAR = rf"{_TEXT}|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null"
_MAPS, _LISTS, _ONES = ("properties", "$defs", "definitions"), ("anyOf", "oneOf", "allOf"), "items"


def pattern_of(schema: Mapping[str, Any] | str, *, exact: bool = True) -> str:
    """Return a regular expression of the JSON that a schema describes, keys in its own order.

    exact: refuse a schema of which a part can't be held to, such as minimum; else that part is
    left out, so that more is allowed. Raises ConfigError for what no expression can say, such as a
    schema within itself.
    """
    try:
        build = import_module("outlines_core.json_schema").build_regex_from_schema
    except ImportError:
        raise MissingPackageError(MISSING) from None
    try:
        whole = json.loads(schema) if isinstance(schema, str) else schema
        pattern = build(json.dumps(_plain(whole, "", exact)))
        for name, any_of in _ANY.items():  # said in its own words: its pattern is far larger
            pattern = pattern.replace(f'"{name}"', f"(?:{any_of})")
        return pattern
    except RecursionError:
        raise ConfigError("the JSON schema is nested too deeply") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        said = " ".join(str(error).split())
        shown = schema if isinstance(schema, str) else json.dumps(schema)
        raise ConfigError(f"JSON schema {shown[:80]!r} can't be compiled: {said[:200]}") from None


def _array(value: str) -> str:
    return rf"\[(?:(?:{value})(?:, ?(?:{value}))*)?\]"


def _object(value: str) -> str:
    pair = rf"{_TEXT}: ?(?:{value})"
    return rf"\{{(?:{pair}(?:, ?{pair})*)?\}}"


_INNER = f"{_SCALAR}|{_array(_SCALAR)}|{_object(_SCALAR)}"
_ANY = {
    "JAXGENANYOBJECT": _object(_INNER),
    "JAXGENANYARRAY": _array(_INNER),
    "JAXGENANYVALUE": _INNER,
}


def _plain(schema: Any, path: str, exact: bool) -> Any:
    """Return a schema without remarks, and without what can't be held to unless `exact`."""
    schema = {} if schema is True else schema
    if not isinstance(schema, Mapping):
        raise ConfigError(f"JSON schema: {path or 'it'} is {schema!r:.40}, no object")
    made: dict[str, Any] = {}
    for key, value in schema.items():
        here = f"{path}.{key}".lstrip(".")
        if key in _MAPS and isinstance(value, Mapping):
            made[key] = {k: _plain(one, f"{here}.{k}", exact) for k, one in value.items()}
        elif key in (*_LISTS, "prefixItems") and isinstance(value, list):
            made[key] = [_plain(one, f"{here}[{i}]", exact) for i, one in enumerate(value)]
        elif key == _ONES or (key == "additionalProperties" and isinstance(value, Mapping)):
            made[key] = _plain(value, here, exact)
        elif key in _REMARKS or (key == "format" and value not in _FORMATS):
            continue
        elif key in _FOLLOWED:
            made[key] = value
        elif exact:
            raise ConfigError(f"JSON schema: {here}={value!r:.40} can't be held to; remove it")
    if made.keys() <= {"type", "required", "additionalProperties"}:
        return _any(schema, made, exact)
    return made


def _any(schema: Mapping[str, Any], made: dict[str, Any], exact: bool) -> dict[str, Any]:
    """Return the schema of what says no more than a type."""
    kind, more = made.get("type"), made.get("additionalProperties", True)
    if kind == "object" and ("properties" in schema or more is False):
        return {"type": "object", "properties": {}}
    if exact and schema.get("required"):
        raise ConfigError(f"JSON schema: required={schema['required']!r:.40} without properties")
    if kind == "object" and more is True:
        return {"const": "JAXGENANYOBJECT"}
    if kind == "array":
        return {"const": "JAXGENANYARRAY"}
    return made if kind is not None else {"const": "JAXGENANYVALUE"}
