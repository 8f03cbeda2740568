"""How models write calls of tools: the spelling that a chat template teaches, as a pattern.

A text is free up to the first call; then come calls and nothing else. All that is around names and
arguments is spelled in one way, so that what the pattern allows can always be read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxgen.decoding.processors.json_schemas import pattern_of
from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import ChatTemplate

ANY_OBJECT = {"type": "object"}
Tool = Mapping[str, Any]  # a function's name, description, parameters, strict


class ToolFormat(NamedTuple):
    """The spelling of calls: head, then (prefix NAME middle ARGUMENTS suffix), sep between, tail.

    trigger: what the first call begins with, which no other text holds; "": a text that begins
    with a brace is a call. xml: arguments are <parameter=...> elements instead of JSON.
    one: a turn holds one call.
    """

    name: str
    trigger: str
    prefix: str
    middle: str
    suffix: str
    head: str = ""
    sep: str = "\n"
    tail: str = ""
    xml: bool = False
    one: bool = False


_NAMED = '{"name": "'
_ARGUMENTS = '", "arguments": '
HERMES = ToolFormat(
    "hermes", "<tool_call>", f"<tool_call>\n{_NAMED}", _ARGUMENTS, "}\n</tool_call>"
)
SMOLLM = ToolFormat(
    *("smollm", "<tool_call>", _NAMED, _ARGUMENTS, "}"),
    head="<tool_call>[",
    sep=", ",
    tail="]</tool_call>",
)
LLAMA = ToolFormat("llama", "", _NAMED, '", "parameters": ', "}", sep="; ")
MISTRAL = ToolFormat(
    *("mistral", "[TOOL_CALLS]", _NAMED, _ARGUMENTS, "}"),
    head="[TOOL_CALLS][",
    sep=", ",
    tail="]",
)
MISTRAL_ARGS = ToolFormat("mistral-args", "[TOOL_CALLS]", "[TOOL_CALLS]", "[ARGS]", "", sep="")
QWEN_XML = ToolFormat(
    *("qwen-xml", "<tool_call>", "<tool_call>\n<function=", ">\n", "</function>\n</tool_call>"),
    xml=True,
)
PLAIN = ToolFormat("plain", "", _NAMED, _ARGUMENTS, "}")
FORMATS = (HERMES, SMOLLM, LLAMA, MISTRAL, MISTRAL_ARGS, QWEN_XML, PLAIN)


def format_of(template: ChatTemplate) -> ToolFormat:
    """Return the spelling that a template teaches: its text says it."""
    sources = [template.source, *(template.others or {}).values()]
    text = next((one for one in sources if "tools" in one), template.source)
    if "<function=" in text and "<parameter=" in text:
        return QWEN_XML
    if "[TOOL_CALLS]" in text:
        if "[ARGS]" in text:
            return MISTRAL_ARGS
        spaced = "[TOOL_CALLS] [" in text
        return MISTRAL._replace(head="[TOOL_CALLS] [") if spaced else MISTRAL
    if "<tool_call>" in text:
        return SMOLLM if re.search(r"<tool_call>\s*\[", text) else HERMES
    if "<|python_tag|>" in text or re.search(r'"name"[^\n]{0,80}"parameters"', text):
        return LLAMA._replace(one="single tool-call" in text)
    return PLAIN


def reads_tools(template: ChatTemplate) -> bool:
    """Return whether a template shows tools to its model."""
    sources = [template.source, *(template.others or {}).values()]
    return any(re.search(r"\btools\b", one) for one in sources)


def instructions(tools: Sequence[Tool]) -> str:
    """Return what tells a model of tools whose template does not."""
    shown = "\n".join(json.dumps(_shown(tool), ensure_ascii=False) for tool in tools)
    return (
        "You can call these functions, each described as JSON:\n"
        f"{shown}\n"
        'To call one, answer with {"name": NAME, "arguments": {...}} as JSON, a line a call, and '
        "nothing else. If none of them helps, answer in plain words."
    )


def _shown(tool: Tool) -> dict[str, Any]:
    return {key: tool[key] for key in ("name", "description", "parameters") if tool.get(key)}


def pattern(spelling: ToolFormat, tools: Sequence[Tool], *, free: bool, several: bool) -> str:
    """Return the regular expression of a turn.

    free: a text may come before the calls, or instead of them; several: more calls than one.
    Raises ConfigError for parameters that can't be held to.
    """
    call = "|".join(_call(spelling, number, tool) for number, tool in enumerate(tools))
    calls = f"(?:{call})"
    if several and not spelling.one:
        calls += f"(?:{re.escape(spelling.sep)}{calls})*"
    calls = f"{_literal(spelling.head)}{calls}{_literal(spelling.tail)}"
    if not free:
        return calls
    if spelling.trigger:
        return f"{_without(spelling.trigger)}(?:{calls})?"
    return rf"(?:{calls}|[ \t\r\n]*(?:[^{{ \t\r\n](?s:.)*)?)"


def _call(spelling: ToolFormat, number: int, tool: Tool) -> str:
    schema = tool.get("parameters") or {"type": "object", "properties": {}}
    exact = tool.get("strict") is True
    try:
        given = _xml(schema, exact) if spelling.xml else pattern_of(_object(schema), exact=exact)
    except ConfigError as error:
        where = f"tools[{number}].function.parameters ({tool['name']})"
        raise ConfigError(f"{where}: {error}") from None
    begin = f"{spelling.prefix}{tool['name']}{spelling.middle}"
    return f"{_literal(begin)}(?:{given}){_literal(spelling.suffix)}"


def _object(schema: Mapping[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise ConfigError(f"type={schema['type']!r:.40} must be object")
    return {**schema, "type": "object"}


def _xml(schema: Mapping[str, Any], exact: bool) -> str:
    """Return the pattern of <parameter=...> elements; texts stand for themselves."""
    rows, wanted = [], set(schema.get("required") or ())
    for name, about in (_object(schema).get("properties") or {}).items():
        text = isinstance(about, Mapping) and about.get("type") == "string"
        if text and not about.keys() & {"enum", "pattern", "format", "const"}:
            value = _without("\n</parameter>")
        elif text and "enum" in about:
            value = "|".join(_literal(str(one)) for one in about["enum"])
        else:
            whole = {**(about if isinstance(about, Mapping) else {}), **_defs(schema)}
            value = pattern_of(whole, exact=exact)
        row = rf"<parameter={_literal(name)}>\n(?:{value})\n</parameter>\n"
        rows.append(f"(?:{row})" if name in wanted else f"(?:{row})?")
    return "".join(rows)


def _defs(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _without(word: str) -> str:
    """Return the pattern of the texts that don't hold a word, whose first character it has once.

    After that character come some of the next ones and then another, or the end.
    """
    first, rest = word[0], word[1:]
    other = f"[^{_literal(first)}]*"
    after = ""
    for place in range(len(rest) - 1, -1, -1):
        odd = f"[^{_literal(first + rest[place])}]{other}"
        more = f"|{_literal(rest[place])}{after}" if place < len(rest) - 1 else ""
        after = f"(?:{odd}{more})?"
    return f"{other}(?:{_literal(first)}{after})*"


def _literal(text: str) -> str:
    own = {"\n": r"\n", " ": " "}
    return "".join(own.get(one) or re.escape(one) for one in text)


def read_xml(text: str, tool: Tool | None) -> dict[str, Any]:
    """Return the arguments of <parameter=...> elements, as their schema has them."""
    properties = ((tool or {}).get("parameters") or {}).get("properties") or {}
    arguments: dict[str, Any] = {}
    for name, value in re.findall(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>", text, re.DOTALL):
        about = properties.get(name) or {}
        is_text = about.get("type") == "string" and not about.keys() & {
            "pattern",
            "format",
            "const",
        }
        arguments[name] = value if is_text else json.loads(value)
    return arguments
