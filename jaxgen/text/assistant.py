"""A model that calls tools: it asks, they answer, until it says something."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxgen.decoding.stop import Reason
from jaxgen.errors import BusyError, ConfigError
from jaxgen.pretrained.chat_template import Message
from jaxgen.text import moderation
from jaxgen.text.loaded_model import template_of
from jaxgen.text.mcp_client import ToolError
from jaxgen.text.prompts import Prompt
from jaxgen.text.request import SEEDS, Generation
from jaxgen.text.text_stream import TextStream
from jaxgen.text.tool_calls import Call, CallReader, Marked, chat_ids
from jaxgen.text.tool_formats import format_of, pattern
from jaxgen.text.tool_sources import CallableTool, Source, open_tools

CALLS = 8  # of tools in a turn, at most
RESULT_SHARE = 4  # a result may fill one part in so many of the context
NEVER = 2**40
Shown = Callable[[str, dict[str, Any], str], None]  # (name, arguments, result)
Confirm = Callable[[str, dict[str, Any]], bool]


def answer(
    session: Any,
    messages: Sequence[Message],
    tools: Sequence[Source],
    settings: Generation | None = None,
    *,
    calls: int = CALLS,
    confirm: Confirm | None = None,
    shown: Shown | None = None,
    values: Mapping[str, Any] | None = None,
    user: str | None = None,
) -> list[dict[str, Any]]:
    """Return the turns that answer a chat: calls and their results, and at last a text.

    Calls are generated under the schemas of the tools, so they can always be made. What a tool
    raises is its result; of one that is longer than a quarter of the context the beginning is
    read, and that it was cut. After the last call that is allowed only a text can come.

    Args:
      session: the model.
      messages: the chat so far.
      tools: what may be called, see `tool_sources.open_tools`.
      settings: of each turn; turn i draws with the seed + i.
      calls: of tools, at most.
      confirm: asked with (name, arguments) before each call; False refuses it.
      shown: told (name, arguments, result) after each call.
      values: what the chat template reads besides, such as {"enable_thinking": False}.
      user: as of `Session.generate`.

    Raises:
      ConfigError: as `open_tools` and `Session.chat`.
      BusyError: for a server of tools that has ended.
    """
    settings = settings or Generation()
    for name in ("regex", "json_schema", "choices"):
        if getattr(settings, name):
            raise ConfigError(f"{name} and tools exclude each other: calls have their own form")
    with open_tools(tools) as opened:
        named = {str(tool.schema["name"]): tool for tool in opened}
        schemas, turns, left = [tool.schema for tool in opened], list[dict[str, Any]](), calls
        template = template_of(session.model)
        spelling = format_of(template)
        free = pattern(spelling, schemas, free=True, several=True) if schemas else None
        while True:
            ids = chat_ids(session, template, [*messages, *turns], schemas, values)
            how = replace(settings, seed=(settings.seed + len(turns)) % SEEDS)
            if not (left and schemas):
                (one,) = session.run([Prompt(ids, how, 0, user)])[0]
                return [*turns, {"role": "assistant", "content": one.text}]
            (one,) = session.run([Prompt(ids, replace(how, regex=free), 0, user)])[0]
            passed = moderation.filters(session.policy or how.policy)
            about = (session.tokenizer, spelling, schemas, one, how.stop, passed)
            said, asked = _read_calls(*about)
            if not asked or one.reason == Reason.TIME:  # which may have cut a call
                return [*turns, {"role": "assistant", "content": said}]
            asked = [(call.name, json.loads(call.arguments)) for call in asked[:left]]
            left -= len(asked)
            rows = [
                {
                    "id": f"call{len(turns):03}{place:02}",
                    "type": "function",
                    "function": {"name": name, "arguments": given},
                }
                for place, (name, given) in enumerate(asked)
            ]
            content = {"content": said} if said.strip() else {}
            turns.append({"role": "assistant", "tool_calls": rows, **content})
            for row, (name, given) in zip(rows, asked, strict=True):
                result = "error: the user does not want this call"
                if confirm is None or confirm(name, given):
                    result = _fit(session, _result(named[name], given))
                if shown is not None:
                    shown(name, given, result)
                turn = {"role": "tool", "tool_call_id": row["id"], "name": name}
                turns.append({**turn, "content": result})


def _read_calls(
    tokenizer: Any,
    spelling: Any,
    schemas: Sequence[Any],
    completion: Any,
    stop: Sequence[str],
    passed: Sequence[Any],
) -> tuple[str, list[Call]]:
    """Return (what a completion says, its calls)."""
    reader = CallReader(spelling, {tool["name"]: tool for tool in schemas}, True)
    marked: Any = Marked(tokenizer, [spelling.trigger, "[ARGS]"])
    stream = TextStream(marked, (), stop, NEVER, filters=passed)
    reader.push(stream.push(completion.tokens))
    reader.push("" if stream.reason is not None else stream.end(completion.reason))
    reader.flush()
    return reader.said, reader.calls


def _result(tool: CallableTool, given: dict[str, Any]) -> str:
    try:
        value = tool.call(**given)
    except BusyError:  # the server of the tool has ended, and with it all its tools
        raise
    except ToolError as error:
        return f"error: {error}"
    except Exception as error:  # somebody else's code: the model hears of it, and goes on
        return f"error: {type(error).__name__}: {error}"
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _fit(session: Any, result: str) -> str:
    """Return a result, cut where it would fill too much of the context."""
    limit = max(session.context // RESULT_SHARE, 1)
    if len(result) <= limit or len(ids := session.tokenizer.encode(result)) <= limit:
        return result
    begin = session.tokenizer.decode(ids[:limit])
    return f"{begin}\n[cut here: {len(ids) - limit} of {len(ids)} tokens are left out]"
