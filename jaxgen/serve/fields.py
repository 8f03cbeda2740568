"""The fields of requests: each is honoured, ignored for a reason, or refused for one.

A table an endpoint, which holds every field that OpenAI documents, and our own settings of a text;
a field that is an object, or a list of such, has a table of its own.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxgen import values
from jaxgen.arguments import Call, Range, at_least, between
from jaxgen.errors import nearest
from jaxgen.serve.problems import Problem
from jaxgen.text.request import SHARE, Generation

MOST_TEXTS, MOST_TOP, MOST_STOPS, MOST_INPUTS = 128, 20, 16, 2048


class Field(NamedTuple):
    """How a field is read.

    hint, rule: its type and its range; sets: the setting of `Generation` that it is; ignored: why
    it changes no answer; refused: why it can't be followed, but for the values in `harmless`;
    table: the fields of the object that it is, or of each in the list.
    """

    hint: Any = Any
    rule: Range | None = None
    sets: str | None = None
    ignored: str = ""
    refused: str = ""
    harmless: tuple[Any, ...] = ()
    required: bool = False
    table: Mapping[str, Field] | None = None


Fields = Mapping[str, Field]
_JSON = values.Source(section=lambda kind, value, path: value)  # messages speak JSON, not Python


def read(body: Any, table: Fields, path: str = "", *, lenient: bool = False) -> dict[str, Any]:
    """Return the honoured fields of an object that are not null; Problem for one that is wrong.

    path: where the object is, as "tools[0].function"; lenient: unknown and refused fields are left
    out instead.
    """
    before = f"{path}." if path else ""
    if not isinstance(body, Mapping):
        raise Problem(f"{path}={_short(body)} is no object; send {{...}}", param=path)
    given: dict[str, Any] = {}
    for name, value in body.items():
        field = table.get(name)
        if field is None and not lenient:
            near = nearest(name, table)
            raise Problem(
                f"unknown field {before}{name}"[:120] + near, param=f"{before}{name}"[:80]
            )
        if field is None or value is None or field.ignored:
            continue
        if field.refused:
            if value not in field.harmless and not lenient:
                why = f"{before}{name} is not supported: {field.refused}"
                raise Problem(why, param=f"{before}{name}", code="unsupported_parameter")
            continue
        given[name] = _checked(field, value, f"{before}{name}", lenient)
    for name, field in table.items():
        if field.required and name not in given:
            raise Problem(f"{before}{name} is missing", param=f"{before}{name}")
    return given


def _checked(field: Field, value: Any, name: str, lenient: bool) -> Any:
    if field.table is not None and field.hint is Mapping:
        return read(value, field.table, name, lenient=lenient)
    try:
        value = values.read_value(field.hint, value, name, _JSON)
        if field.rule is not None:
            field.rule(name, value, Call({}))
    except Problem:
        raise
    except ValueError as error:  # a ConfigError, which begins with the name
        raise Problem(str(error), param=name) from None
    if field.table is None or isinstance(value, str):
        return value
    return [read(one, field.table, f"{name}[{i}]", lenient=lenient) for i, one in enumerate(value)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def settings_of(given: Mapping[str, Any], table: Fields) -> dict[str, Any]:
    """Return the settings of `Generation` that fields give; Problem for two that differ."""
    made: dict[str, Any] = {}
    by: dict[str, str] = {}
    for name, value in given.items():
        ours = table[name].sets
        if ours is None:
            continue
        if ours in made and made[ours] != value:
            raise Problem(f"{by[ours]} and {name} say the same differently; send one", param=name)
        made[ours], by[ours] = value, name
    return made


def named(table: Fields, given: Mapping[str, Any]) -> dict[str, str]:
    """Return {setting of ours: the field that sets it}, the one that was given first of all."""
    names = {field.sets: name for name, field in table.items() if field.sets}
    return names | {table[name].sets or name: name for name in given if name in table}


TEXT, NAME, FLAG = Field(str), Field(str, required=True), Field(bool)
OBJECT = Field(Mapping[str, Any])
_PENALTY = between(-2, 2)
_CACHE = Field(Any, ignored="prefixes are shared in any case, and no answer depends on it")
_KEPT = Field(Any, ignored="no answer is kept")
_ABOUT = Field(Any, ignored="it is about a text, no part of it")
STREAM_OPTIONS: dict[str, Field] = {
    "include_usage": FLAG,
    "include_obfuscation": Field(Any, ignored="padding of events; the text is the same"),
}
_STREAM: dict[str, Field] = {
    "stream": FLAG,
    "stream_options": Field(Mapping, table=STREAM_OPTIONS),
}
_UNKEPT: dict[str, Field] = {
    "store": _KEPT,
    "moderation": Field(Any, refused="nothing is moderated"),
    "service_tier": Field(Any, ignored="there is one tier"),
    "safety_identifier": Field(Any, ignored="there are no accounts"),
    "prompt_cache_key": _CACHE,
    "prompt_cache_options": _CACHE,
    "prompt_cache_retention": _CACHE,
}
_SAMPLING: dict[str, Field] = {
    "model": NAME,
    "temperature": Field(float, between(0, 2), "temperature"),
    "top_p": Field(float, SHARE, "top_p"),
    "user": Field(str),  # ignored where no users are served, as there are no accounts
}
_DRAWS: dict[str, Field] = {
    "frequency_penalty": Field(float, _PENALTY, "frequency_penalty"),
    "presence_penalty": Field(float, _PENALTY, "presence_penalty"),
    "logit_bias": Field(Mapping[str, float]),
    "n": Field(int, between(1, MOST_TEXTS), "samples"),
    "seed": Field(int, between(-(2**63), 2**64 - 1)),
    "stop": Field(str | Sequence[str]),
    "max_tokens": Field(int, at_least(1), "max_new_tokens"),
}
_BARRED = {
    "draft": "it names a folder of the server",
    "samples": "send n",
    "bias": "send logit_bias",
    "bias_ids": "send logit_bias",
}


def _own() -> dict[str, Field]:
    """Return our own settings as fields of the same name."""
    hints = typing.get_type_hints(Generation)
    return {
        name: Field(refused=_BARRED[name]) if name in _BARRED else Field(hint, None, name)
        for name, hint in hints.items()
    }


OWN = _own()
# Parts of requests.
PART: dict[str, Field] = {
    "type": Field(Literal["text", "input_text", "output_text", "refusal"], required=True),
    "text": TEXT,
    "refusal": TEXT,
    "annotations": _ABOUT,
    "logprobs": _ABOUT,
    "prompt_cache_breakpoint": _CACHE,
}
FUNCTION: dict[str, Field] = {
    "name": NAME,
    "description": TEXT,
    "parameters": OBJECT,
    "strict": FLAG,
}
_FUNCTION = Field(Literal["function"], required=True)
TOOL: dict[str, Field] = {
    "type": _FUNCTION,
    "function": Field(Mapping, required=True, table=FUNCTION),
}
RESPONSE_TOOL: dict[str, Field] = FUNCTION | {
    "type": _FUNCTION,
    "async": Field(Any, refused="calls are answered by the next request", harmless=(False,)),
    "allowed_callers": Field(Any, refused="the model alone calls", harmless=(["direct"],)),
    "defer_loading": Field(Any, refused="all tools are shown", harmless=(False,)),
    "output_schema": Field(Any, ignored="it is about what the caller sends"),
}
CALL: dict[str, Field] = {
    "id": NAME,
    "type": Field(Literal["function"]),
    "function": Field(Mapping, required=True, table={"name": NAME, "arguments": NAME}),
    "index": Field(Any, ignored="the order says it"),
}
_SAYS: dict[str, Field] = {
    "role": NAME,
    "content": Field(str | Sequence[Any], table=PART),
    "name": TEXT,
}
MESSAGES: dict[str, dict[str, Field]] = {
    "system": _SAYS,
    "developer": _SAYS,
    "user": _SAYS,
    "assistant": _SAYS
    | {
        "tool_calls": Field(Sequence[Any], table=CALL),
        "refusal": TEXT,
        "reasoning_content": TEXT,
        "audio": Field(Any, refused="only texts are read"),
        "function_call": Field(Any, refused="it is deprecated; send tool_calls"),
        "annotations": _ABOUT,
    },
    "tool": _SAYS | {"tool_call_id": NAME},
}
_ITEM: dict[str, Field] = {
    "type": TEXT,
    "id": Field(Any, ignored="nothing is kept"),
    "status": Field(Any, ignored="what is sent counts"),
    "caller": Field(Any, ignored="the model alone calls"),
    "name": TEXT,
}
ITEMS: dict[str, dict[str, Field]] = {
    "message": _ITEM
    | {
        "role": NAME,
        "content": Field(Any),
        "phase": Field(Any, ignored="all turns are read alike"),
    },
    "function_call": _ITEM | {"call_id": NAME, "name": NAME, "arguments": NAME},
    "function_call_output": _ITEM | {"call_id": NAME, "output": Field(str | Sequence[Any])},
}
SCHEMA: dict[str, Field] = {
    "name": TEXT,
    "description": TEXT,
    "schema": OBJECT,
    "strict": FLAG,
}
FORMAT: dict[str, Field] = {
    "type": Field(Literal["text", "json_object", "json_schema", "regex"], required=True),
    "json_schema": Field(Mapping, table=SCHEMA),
    "regex": TEXT,
}
_VERBOSITY = Field(Any, refused="say it in a message", harmless=("medium",))
_SHAPE = Field(Mapping, table=FORMAT | SCHEMA)
_UNTHOUGHT = Field(Any, ignored="thoughts are not summed up")
_REASONING = {"effort": TEXT, "summary": _UNTHOUGHT, "generate_summary": _UNTHOUGHT}

# Endpoints.
_CALLING: dict[str, Field] = {"tool_choice": Field(Any), "parallel_tool_calls": FLAG}
_TOOLS = Field(Sequence[Any], table=TOOL)
CHAT: dict[str, Field] = {
    **OWN,
    **_SAMPLING,
    **_DRAWS,
    **_STREAM,
    **_CALLING,
    **_UNKEPT,
    "tools": _TOOLS,
    "messages": Field(Sequence[Any], required=True),
    "max_completion_tokens": Field(int, at_least(1), "max_new_tokens"),
    "logprobs": FLAG,
    "top_logprobs": Field(int, between(0, MOST_TOP)),
    "response_format": Field(Mapping, table=FORMAT),
    "reasoning_effort": TEXT,
    "chat_template_kwargs": OBJECT,
    "audio": Field(Any, refused="answers are text"),
    "modalities": Field(Any, refused="answers are text", harmless=(["text"],)),
    "functions": Field(Any, refused="it is deprecated; send tools"),
    "function_call": Field(Any, refused="it is deprecated; send tool_choice"),
    "web_search_options": Field(Any, refused="there is no search"),
    "verbosity": _VERBOSITY,
    "prediction": Field(Any, ignored="a guess of the answer makes it faster at most"),
    "metadata": _KEPT,
}
COMPLETION: dict[str, Field] = {
    **OWN,
    **_SAMPLING,
    **_DRAWS,
    **_STREAM,
    "prompt": Field(Any, required=True),
    "logprobs": Field(int, between(0, MOST_TOP)),
    "best_of": Field(int, between(1, MOST_TEXTS), "best_of"),
    "echo": FLAG,
    "suffix": Field(Any, refused="models that fill a middle are not served", harmless=("",)),
}
del COMPLETION["top_logprobs"]  # which `logprobs` is here
_ONE = Field(refused="one answer is made; /v1/chat/completions takes n and logit_bias")
RESPONSE: dict[str, Field] = {
    **OWN,
    **dict.fromkeys(("samples", "n_best", "bias", "bias_ids"), _ONE),
    **_SAMPLING,
    **_STREAM,
    **_CALLING,
    **_UNKEPT,
    "tools": Field(Sequence[Any], table=RESPONSE_TOOL),
    "input": Field(str | Sequence[Any], required=True),
    "instructions": TEXT,
    "max_output_tokens": Field(int, at_least(1), "max_new_tokens"),
    "text": Field(Mapping, table={"format": _SHAPE, "verbosity": _VERBOSITY}),
    "top_logprobs": Field(int, between(0, MOST_TOP)),
    "include": Field(Sequence[str]),
    "reasoning": Field(Mapping, table=_REASONING),
    "metadata": OBJECT,
    "seed": Field(int, between(-(2**63), 2**64 - 1)),
    "chat_template_kwargs": OBJECT,
    "background": Field(Any, refused="answers are made while you wait", harmless=(False,)),
    "background_options": Field(Any, refused="answers are made while you wait"),
    "context_management": Field(Any, refused="send what is to be read"),
    "conversation": Field(Any, refused="nothing is kept; send the whole conversation as input"),
    "previous_response_id": Field(Any, refused="nothing is kept; send earlier turns as input"),
    "prompt": Field(Any, refused="no templates of prompts are kept; send input"),
    "image": Field(Any, refused="answers are text"),
    "access_programs": Field(Any, refused="there are no access programs"),
    "truncation": Field(Any, refused="shorten the input", harmless=("disabled",)),
    "max_tool_calls": Field(Any, ignored="it counts calls of tools that the server runs: none"),
}
EMBEDDING: dict[str, Field] = {
    "model": NAME,
    "input": Field(str | Sequence[Any], required=True),
    "dimensions": Field(int, at_least(1)),
    "encoding_format": Field(Literal["float", "base64"]),
    "user": TEXT,
    "prompt_name": TEXT,
    "overflow": Field(Literal["refuse", "cut"]),
}
SCORE: dict[str, Field] = {
    "model": NAME,
    "input": Field(str | Sequence[str], required=True),
    "overflow": Field(Literal["refuse", "cut"]),
    "user": TEXT,
}
TOKENIZE: dict[str, Field] = {
    "model": TEXT,
    "prompt": TEXT,
    "messages": Field(Sequence[Any]),
    "tools": _TOOLS,
    "chat_template_kwargs": OBJECT,
    "add_special_tokens": FLAG,
}
DETOKENIZE: dict[str, Field] = {"model": TEXT, "tokens": Field(Sequence[int], required=True)}
