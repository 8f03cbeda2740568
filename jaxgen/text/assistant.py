"""A model that calls functions: it asks, they answer, until it says something."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from jaxgen.decoding.stop import Reason
from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import Message
from jaxgen.text.loaded_model import template_of
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import SEEDS, Generation
from jaxgen.text.text_stream import TextStream
from jaxgen.text.tool_calls import CallReader, Marked, chat_ids
from jaxgen.text.tool_formats import Tool, format_of, pattern

CALLS = 8  # of functions in a turn, at most
NEVER = 2**40
Function = Callable[..., Any]
Shown = Callable[[str, dict[str, Any], str], None]  # (name, arguments, result)
Confirm = Callable[[str, dict[str, Any]], bool]
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}


def schema_of(function: Function) -> Tool:
    """Return a function as a tool: its name, its docstring, and its arguments by their type hints.

    Hints are str, int, float, bool, list, dict, Literal, and unions and lists of those; an
    argument with a default may be left out. Of a section "Args:" each "name: text" is kept.
    Raises ConfigError for an argument without a hint, or with another.
    """
    name, text = getattr(function, "__name__", "function"), inspect.getdoc(function) or ""
    about, _, rest = text.partition("\nArgs:\n")
    told = dict(re.findall(r"^\s+(\w+)(?: \([^)]*\))?: (.+)$", rest, re.MULTILINE))
    hints, properties, required = typing.get_type_hints(function), {}, []
    for key, one in inspect.signature(function).parameters.items():
        if key not in hints or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            raise ConfigError(f"{name}({key}): a tool's arguments need type hints, each one")
        properties[key] = _schema(hints[key], f"{name}({key})")
        properties[key] |= {"description": told[key]} if key in told else {}
        required += [key] if one.default is one.empty else []
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": about.strip(), "parameters": parameters}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    origin, arms = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arms)}
    if origin in (typing.Union, types.UnionType):
        real = [arm for arm in arms if arm is not types.NoneType]
        shown = [_schema(arm, where) for arm in real]
        shown += [{"type": "null"}] * (len(real) < len(arms))
        return shown[0] if len(shown) == 1 else {"anyOf": shown}
    if origin is list:
        return {"type": "array", "items": _schema(arms[0], where)}
    if (origin or hint) not in _SIMPLE:
        raise ConfigError(f"{where}: the hint {hint!r} is none that a tool's schema has")
    return dict(_SIMPLE[origin or hint])


def answer(
    session: Any,
    messages: Sequence[Message],
    functions: Sequence[Function],
    settings: Generation | None = None,
    *,
    calls: int = CALLS,
    confirm: Confirm | None = None,
    shown: Shown | None = None,
    values: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the turns that answer a chat: calls and their results, and at last a text.

    Calls are generated under the schemas of the functions, so they can always be made. What a
    function raises is its result; after the last call that is allowed only a text can come.

    Args:
      session: the model.
      messages: the chat so far.
      functions: what may be called, see `schema_of`.
      settings: of each turn; turn i draws with the seed + i.
      calls: of functions, at most.
      confirm: asked with (name, arguments) before each call; False refuses it.
      shown: told (name, arguments, result) after each call.
      values: what the chat template reads besides, such as {"enable_thinking": False}.

    Raises:
      ConfigError: for two functions of one name, a hint that no schema has, and as `Session.chat`.
    """
    named = {getattr(one, "__name__", "function"): one for one in functions}
    if len(named) < len(functions):
        raise ConfigError("two functions have one name; rename one")
    settings, tools = settings or Generation(), [schema_of(one) for one in functions]
    template, turns = template_of(session.model), list[dict[str, Any]]()
    spelling, left = format_of(template), calls
    free = pattern(spelling, tools, free=True, several=True) if tools else None
    while True:
        ids = chat_ids(session, template, [*messages, *turns], tools, values)
        how = replace(settings, seed=(settings.seed + len(turns)) % SEEDS)
        if not (left and tools):
            (one,) = session.run([Prompt(ids, how)])[0]
            return [*turns, {"role": "assistant", "content": one.text}]
        (one,) = session.run([Prompt(ids, replace(how, regex=free))])[0]
        reader = CallReader(spelling, {tool["name"]: tool for tool in tools}, True)
        stream = TextStream(_shown(session.tokenizer, spelling), (), how.stop, NEVER)
        reader.push(stream.push(one.tokens))
        reader.push("" if stream.reason is not None else stream.end(one.reason))
        reader.flush()
        if not reader.calls or one.reason == Reason.TIME:  # which may have cut a call
            return [*turns, {"role": "assistant", "content": reader.said}]
        made = [(call.name, json.loads(call.arguments)) for call in reader.calls[:left]]
        left -= len(made)
        turns += _called(made, named, len(turns), confirm, shown, reader.said)


def _shown(tokenizer: Any, spelling: Any) -> Any:
    return Marked(tokenizer, [spelling.trigger, "[ARGS]"])


def _called(
    made: Sequence[tuple[str, dict[str, Any]]],
    named: Mapping[str, Function],
    number: int,
    confirm: Confirm | None,
    shown: Shown | None,
    said: str,
) -> list[dict[str, Any]]:
    """Return the turn of calls, and those of their results."""
    ids = [f"call{number:03}{place:02}" for place in range(len(made))]
    rows = [
        {"id": one, "type": "function", "function": {"name": name, "arguments": given}}
        for one, (name, given) in zip(ids, made, strict=True)
    ]
    about = {"content": said} if said.strip() else {}
    turns: list[dict[str, Any]] = [{"role": "assistant", "tool_calls": rows} | about]
    for one, (name, given) in zip(ids, made, strict=True):
        if confirm is not None and not confirm(name, given):
            result = "error: the user does not want this call"
        else:
            result = _result(named[name], given)
        if shown is not None:
            shown(name, given, result)
        turns.append({"role": "tool", "tool_call_id": one, "name": name, "content": result})
    return turns


def _result(function: Function, given: dict[str, Any]) -> str:
    try:
        value = function(**given)
    except Exception as error:  # somebody else's code: the model hears of it, and goes on
        return f"error: {type(error).__name__}: {error}"
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)
