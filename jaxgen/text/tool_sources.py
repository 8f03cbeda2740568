"""Where the tools of a model come from: Python functions, files of them, and MCP servers."""

from __future__ import annotations

import inspect
import re
import runpy
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxgen.errors import ConfigError
from jaxgen.text import mcp_client
from jaxgen.text.tool_formats import Tool

MCP = "mcp:"
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}


class CallableTool(NamedTuple):
    """A tool that can be called: its schema, and what takes the arguments by name."""

    schema: Tool
    call: Callable[..., Any]


Source = Callable[..., Any] | CallableTool | str


@contextmanager
def open_tools(sources: Sequence[Source]) -> Iterator[list[CallableTool]]:
    """Yield the tools of sources; servers among them run until the context ends.

    Args:
      sources: Python functions with type hints; "FILE.py", whose public functions are meant;
        "mcp:COMMAND", which starts a server of the Model Context Protocol; or tools themselves.

    Raises:
      ConfigError: for a function without type hints, a file that can't be run, a command that is
        no server, and two tools of one name.
      MissingPackageError: for "mcp:" without the package of that name.
    """
    with ExitStack() as stack:
        tools: list[CallableTool] = []
        for source in sources:
            if isinstance(source, CallableTool):
                tools.append(source)
            elif callable(source):
                tools.append(CallableTool(schema_of(source), source))
            elif source.startswith(MCP):
                server = stack.enter_context(mcp_client.connect(source.removeprefix(MCP)))
                tools += [CallableTool(schema, call) for schema, call in server]
            elif source.endswith(".py"):
                tools += [CallableTool(schema_of(one), one) for one in functions_of(source)]
            else:
                raise ConfigError(f"tools={source!r} is neither FILE.py nor mcp:COMMAND")
        names = [tool.schema["name"] for tool in tools]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"two tools are called {twice!r}; rename or leave out one")
        yield tools


def functions_of(path: str) -> list[Callable[..., Any]]:
    """Return the functions of a Python file that are its own and public; ConfigError for none."""
    if not Path(path).is_file():
        raise ConfigError(f"tools={path} is no file; correct the path")
    try:
        names = runpy.run_path(path, run_name="tools")
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise ConfigError(f"tools={path} can't be run: {said}") from error
    own = {
        name: one
        for name, one in names.items()
        if inspect.isfunction(one) and one.__module__ == "tools" and not name.startswith("_")
    }
    if not own:
        raise ConfigError(f"tools={path} has no public function of its own; write one with def")
    return list(own.values())


def schema_of(function: Callable[..., Any]) -> Tool:
    """Return a function as a tool: its name, its docstring, and its arguments by their type hints.

    Hints are str, int, float, bool, list, dict, Literal, and unions and lists of those; an
    argument with a default may be left out. Of a section "Args:" each "name: text" is kept.
    Raises ConfigError for an argument without a hint, or with another.
    """
    name, text = getattr(function, "__name__", "function"), inspect.getdoc(function) or ""
    about, _, rest = text.partition("\nArgs:\n")
    described = dict(re.findall(r"^\s+(\w+)(?: \([^)]*\))?: (.+)$", rest, re.MULTILINE))
    hints, properties, required = typing.get_type_hints(function), {}, []
    for key, one in inspect.signature(function).parameters.items():
        if key not in hints or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            raise ConfigError(f"{name}({key}): a tool's arguments need type hints, each one")
        properties[key] = _schema(hints[key], f"{name}({key})")
        properties[key] |= {"description": described[key]} if key in described else {}
        required += [key] if one.default is one.empty else []
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": about.strip(), "parameters": parameters}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arms)}
    if origin in (typing.Union, types.UnionType):
        real = [arm for arm in arms if arm is not types.NoneType]
        schemas = [_schema(arm, where) for arm in real]
        schemas += [{"type": "null"}] * (len(real) < len(arms))
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if origin is list:
        return {"type": "array", "items": _schema(arms[0], where)}
    if (origin or hint) not in _SIMPLE:
        raise ConfigError(f"{where}: the hint {hint!r} is none that a tool's schema has")
    return dict(_SIMPLE[origin or hint])
