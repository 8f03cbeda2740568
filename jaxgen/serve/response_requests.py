"""Bodies of /v1/responses as requests for a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.serve import fields
from jaxgen.serve.fields import read
from jaxgen.serve.problems import Problem
from jaxgen.serve.requests import Ask, of_chat, read_function, read_messages
from jaxgen.serve.served import Served


def response(served: Served, body: Mapping[str, Any], lenient: bool) -> Ask:
    """Return the request of /v1/responses."""
    given = read(body, fields.RESPONSE, lenient=lenient)
    said = given["input"]
    rows = [{"role": "user", "content": said}] if isinstance(said, str) else _items(said, lenient)
    if given.get("instructions"):
        rows.insert(0, {"role": "system", "content": given["instructions"]})
    tools = []
    for number, tool in enumerate(given.get("tools") or ()):
        about = read(tool, fields.RESPONSE_TOOL, f"tools[{number}]", lenient=lenient)
        about.pop("type")
        tools.append(read_function(about, f"tools[{number}]", lenient))
    choice = given.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        given["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    effort = read(
        given.get("reasoning") or {},
        {
            "effort": fields.TEXT,
            "summary": fields.Field(Any, ignored="thoughts are not summed up"),
            "generate_summary": fields.Field(Any, ignored="thoughts are not summed up"),
        },
        "reasoning",
        lenient=lenient,
    )
    if "effort" in effort:
        given["reasoning_effort"] = effort["effort"]
    form = read(
        given.get("text") or {},
        {
            "format": fields.OBJECT,
            "verbosity": fields.CHAT["verbosity"],
        },
        "text",
        lenient=lenient,
    ).get("format")
    if form is not None:
        table = fields.FORMAT | fields.SCHEMA
        form = read(form, table, "text.format", lenient=lenient)
    wanted = given.get("include") or ()
    for one in wanted:
        if one not in ("message.output_text.logprobs", "reasoning.encrypted_content"):
            raise Problem(f"include={one!r:.60}: there is no such tool", param="include")
    detail = given.get("top_logprobs")
    if detail is None and "message.output_text.logprobs" in wanted:
        detail = 0
    read(given.get("stream_options") or {}, fields.STREAM_OPTIONS, "stream_options")
    table = fields.RESPONSE
    return of_chat(served, given, table, read_messages(rows, lenient, "input"), tools, form, detail)


def _items(items: Sequence[Any], lenient: bool) -> list[Any]:
    """Return the items of `input` as messages."""
    rows: list[Any] = []
    for number, item in enumerate(items):
        path = f"input[{number}]"
        if not isinstance(item, Mapping):
            raise Problem(f"{path} is no object", param=path)
        kind = item.get("type", "message")
        text = fields.Field(str, required=True)
        known = {
            "type": fields.Field(Any),
            "id": fields.Field(Any, ignored="nothing is kept"),
            "status": fields.Field(Any, ignored="what is sent counts"),
            "caller": fields.Field(Any, ignored="the model alone calls"),
            "name": fields.TEXT,
        }
        if kind == "message":
            phase = {"phase": fields.Field(Any, ignored="all turns are read alike")}
            table = {"role": text, "content": fields.Field(Any), **phase, **known}
            row = read(item, table, path, lenient=lenient)
            row.pop("type", None)
            rows.append(row)
        elif kind == "function_call":
            table = known | {"call_id": text, "name": text, "arguments": text}
            row = read(item, table, path, lenient=lenient)
            about = {"name": row["name"], "arguments": row["arguments"]}
            call = {"id": row["call_id"], "type": "function", "function": about}
            if rows and rows[-1].get("tool_calls"):
                rows[-1]["tool_calls"].append(call)
            else:
                rows.append({"role": "assistant", "tool_calls": [call]})
        elif kind == "function_call_output":
            table = known | {"call_id": text, "output": fields.Field(str | Sequence[Any])}
            row = read(item, table, path, lenient=lenient)
            about = {"tool_call_id": row["call_id"], "content": row.get("output", "")}
            rows.append({"role": "tool", **about})
        elif kind != "reasoning":
            raise Problem(f"{path}.type={kind!r:.40} is not supported", param=f"{path}.type")
    return rows
