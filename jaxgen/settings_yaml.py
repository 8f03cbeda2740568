"""YAML as configs use it: the plain types of YAML 1.2, one document, no surprise.

PyYAML follows YAML 1.1, where `no` is false, `1e-3` is a string and `1:30` is 90; here they are
"no", 0.001 and "1:30". Duplicate keys, tags, alias bombs and wrong encodings are refused.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from jaxgen import files
from jaxgen.errors import ConfigError, nearest

MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # after aliases are expanded
MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": re.compile(r"~|null|Null|NULL|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+"),
    "float": re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}


_WORDS = {  # what PyYAML's messages call a thing -> what they say here
    "'<stream end>'": "the end of the file",
    "<stream end>": "the end of the file",
    "<block end>": "a line of less indent",
    "'<block mapping start>'": "a line of more indent",
    "'<block sequence start>'": "a line of more indent",
    "flow sequence": "flow sequence [...]",
    "flow mapping": "flow mapping {...}",
    "block mapping": "mapping",
    "block collection": "list",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes only; `_Walk` gives them values, so no tag can construct anything."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own name, replaced and not shared


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would misread, so that other readers agree with us."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as above
        first: [(tag, regexp) for tag, regexp in rules if tag != f"{_TAG}float"]
        for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern in _SCALARS.items():
    _anchored = re.compile(rf"^(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", _anchored, None)
    _Dumper.add_implicit_resolver(f"{_TAG}{_name}", _anchored, None)


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds U+0085 and its kin inside single quotes and loses them; escapes survive.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _string)
_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence(f"{_TAG}seq", data, flow_style=True)
)


def read_yaml(path: Path, what: str = "config") -> dict[str, Any]:
    """Return the mapping in a YAML file of at most 1 MiB; ConfigError names file:line:column.

    what: how messages call such a file.
    """
    text = _decode(_load(files.to_path(path), what), path)
    if not text.strip():
        remedy = ", or copy one of configs/*.yaml" if what == "config" else ""
        raise ConfigError(f"{path} is empty; write at least one key{remedy}")
    value = parse(text, name=str(path))
    if value is None:
        raise ConfigError(f"{path} holds only comments; write at least one key")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: the top must be `key: value` lines, not {value!r:.40}")
    return value


def parse(text: str, *, name: str) -> Any:
    """Return the value of YAML text; `name` is what messages call it."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_complaint(error, name)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{name}:{line}: character U+{error.character:04X} is not allowed in YAML; remove it"
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # An escape such as "\UFFFFFFFF" surfaces as OverflowError from inside PyYAML.
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested deeper than {MAX_DEPTH} levels; flatten it") from error
    return None if node is None else _Walk(name).value(node, 0)


def scalar(text: str) -> Any:
    """Return what a plain word means: null, a boolean, an integer, a float, or itself."""
    for name, pattern in _SCALARS.items():
        if pattern.fullmatch(text):
            return _READERS[name](text)
    return text


def to_yaml(value: Any) -> str:
    """Return block-style YAML text, keys in their order and floats exact."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, indent=2
    )
    return text if isinstance(text, str) else ""


def _float(text: str) -> float:
    # Python spells infinity and "not a number" without YAML's leading dot.
    return float(text.replace(".", "") if text[-1] in "fFnN" else text)


_READERS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": _float,
}


class _Walk:
    """Turns nodes into plain values under caps on their number and depth."""

    def __init__(self, name: str):
        self.name = name
        self.nodes = 0

    def refuse(self, node: yaml.Node, problem: str) -> ConfigError:
        mark = node.start_mark
        return ConfigError(f"{self.name}:{mark.line + 1}:{mark.column + 1}: {problem}")

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.refuse(node, f"more than {MAX_NODES} values; aliases may not multiply them")
        if depth > MAX_DEPTH:
            raise self.refuse(node, f"nested deeper than {MAX_DEPTH} levels; flatten it")
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and kind in (*_SCALARS, "str"):
            return self.scalar(node, kind)
        shown = f"!!{kind}" if kind != node.tag else kind
        raise self.refuse(node, f"tag {shown!r} is not read; write plain values")

    def scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        if kind == "str":
            return node.value
        if not _SCALARS[kind].fullmatch(node.value):
            raise self.refuse(node, f"{node.value!r:.40} is not a YAML {kind}")
        try:
            return _READERS[kind](node.value)
        except ValueError as error:  # Python refuses integers of thousands of digits
            raise self.refuse(node, f"a number of {len(node.value)} digits is too long") from error

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        result, lines = {}, {}
        for key_node, value_node in node.value:
            key = self.value(key_node, depth + 1)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise self.refuse(key_node, f"key {key!r:.40} is not text; quote it")
            if key in result:
                raise self.refuse(
                    key_node, f"key {key!r} is written twice (first on line {lines[key]}); keep one"
                )
            result[key], lines[key] = self.value(value_node, depth + 1), line
        return result


def _load(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        near = _similar(path) if what == "config" else "; correct the path"
        raise ConfigError(f"no {what} {str(path)!r}{near}") from error
    except IsADirectoryError as error:
        inside = ", ".join(sorted(p.name for p in path.glob("*.yaml"))[:5])
        hint = f"; it holds {inside}" if inside else ""
        raise ConfigError(f"{what} {str(path)!r} is a folder; name a .yaml file{hint}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {what} {str(path)!r}: {reason}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; is it a {what}?")
    return data


def _similar(path: Path) -> str:
    near = [p for folder in (path.parent, path.parent / "configs") for p in folder.glob("*.y*ml")]
    by_name = {p.name: str(p) for p in reversed(near)}
    guess = nearest(path.name, by_name)
    for name, full in by_name.items():
        guess = guess.replace(repr(name), repr(full))
    listing = f"; there are {', '.join(sorted(by_name.values())[:8])}" if by_name else ""
    return guess or listing or "; give the path of a .yaml file"


def _decode(data: bytes, path: Path) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"config {str(path)!r} is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from error


def _complaint(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    problem = ", ".join(filter(None, (error.context, error.problem)))
    for term, words in _WORDS.items():
        problem = problem.replace(term, words)
    tab = "\\t" in problem
    remedy = "indent with spaces, not tabs" if tab else "correct the YAML there, or just before"
    return f"{name}{position}: {problem}; {remedy}"
