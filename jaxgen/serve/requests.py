"""Bodies of requests as prompts of the library."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxgen.decoding.processors.json_schemas import pattern_of
from jaxgen.errors import ConfigError
from jaxgen.serve import fields
from jaxgen.serve.fields import Fields, read, settings_of
from jaxgen.serve.problems import Problem
from jaxgen.serve.served import Served
from jaxgen.text import tool_formats
from jaxgen.text.prompts import Prompt, number_prompts
from jaxgen.text.request import Generation
from jaxgen.text.tool_formats import Tool
from jaxgen.text.users import with_system

SEEDS = 2**64
LONGEST_REGEX = 20_000


@dataclass
class Ask:
    """A request for texts: its prompts, and how its answer is laid.

    texts: choices of each prompt; detail: alternatives of each token, None for no
    log-probabilities; tools: those that it may call; free: a text may be no call; echo: prompts
    that come back; sources: where the passages of an index stand that a chat has got.
    """

    served: Served
    prompts: list[Prompt]
    texts: int
    detail: int | None = None
    stream: bool = False
    usage: bool = False
    tools: list[Tool] = field(default_factory=list)
    free: bool = True
    echo: list[str] | None = None
    given: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)

    @property
    def source_fields(self) -> dict[str, Any]:
        """Return the field of an answer that names the sources; none where there are none."""
        return {"sources": self.sources} if self.sources else {}


def chat(served: Served, body: Mapping[str, Any], lenient: bool) -> Ask:
    """Return the request of /v1/chat/completions."""
    given = read(body, fields.CHAT, lenient=lenient)
    if given.get("top_logprobs") is not None and not given.get("logprobs"):
        raise Problem("top_logprobs needs logprobs: true", param="top_logprobs")
    form = given.get("response_format", {})
    if form.get("type") == "json_schema" and "json_schema" not in form:
        raise Problem("response_format.json_schema is missing", param="response_format")
    form |= form.get("json_schema", {})
    detail = (given.get("top_logprobs") or 0) if given.get("logprobs") else None
    messages = _messages(given["messages"], lenient)
    tools = [one["function"] for one in given.get("tools", ())]
    return _chat(served, given, fields.CHAT, messages, tools, form, detail)


def response(served: Served, body: Mapping[str, Any], lenient: bool) -> Ask:
    """Return the request of /v1/responses."""
    given = read(body, fields.RESPONSE, lenient=lenient)
    said, choice = given["input"], given.get("tool_choice")
    rows = [{"role": "user", "content": said}] if isinstance(said, str) else _items(said, lenient)
    if given.get("instructions"):
        rows.insert(0, {"role": "system", "content": given["instructions"]})
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        given["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    given |= {f"reasoning_{name}": value for name, value in given.get("reasoning", {}).items()}
    wanted, detail = given.get("include", ()), given.get("top_logprobs")
    for one in wanted:
        if one not in ("message.output_text.logprobs", "reasoning.encrypted_content"):
            raise Problem(f"include={one!r:.60}: there is no such tool", param="include")
    if detail is None and "message.output_text.logprobs" in wanted:
        detail = 0
    tools: list[Tool] = [
        {k: v for k, v in one.items() if k != "type"} for one in given.get("tools", ())
    ]
    form, messages = given.get("text", {}).get("format", {}), _messages(rows, lenient, "input")
    return _chat(served, given, fields.RESPONSE, messages, tools, form, detail)


def _items(items: Sequence[Any], lenient: bool) -> list[Any]:
    """Return the items of `input` as messages."""
    rows: list[Any] = []
    for number, item in enumerate(items):
        path = f"input[{number}]"
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "reasoning":
            continue
        table = fields.ITEMS.get(kind) if isinstance(kind, str) else None
        if table is None:
            raise Problem(f"{path}.type={kind!r:.40} is not supported", param=f"{path}.type")
        row = read(item, table, path, lenient=lenient)
        row.pop("type", None)
        if kind == "message":
            rows.append(row)
        elif kind == "function_call_output":
            said = row.get("output", "")
            rows.append({"role": "tool", "tool_call_id": row["call_id"], "content": said})
        else:
            about = {"name": row["name"], "arguments": row["arguments"]}
            call = {"id": row["call_id"], "type": "function", "function": about}
            if rows and rows[-1].get("tool_calls"):
                rows[-1]["tool_calls"].append(call)
            else:
                rows.append({"role": "assistant", "tool_calls": [call]})
    return rows


def _chat(
    served: Served,
    given: dict[str, Any],
    table: Fields,
    messages: list[dict[str, Any]],
    tools: list[Tool],
    form: Mapping[str, Any],
    detail: int | None,
) -> Ask:
    """Return the request of a chat, whose parts are read."""
    _check_generates(served)
    tools, free = _choice(given, tools)
    values = dict(given.get("chat_template_kwargs", {}))
    if "tools" in values:
        raise Problem("chat_template_kwargs.tools: send tools", param="chat_template_kwargs")
    effort = given.get("reasoning_effort")
    if effort is not None:
        values["reasoning_effort"] = effort
    changes = settings_of(given, table) | _more_settings(given, served) | _form(form)
    if tools:
        if any(changes.get(name) for name in ("regex", "json_schema", "choices")):
            raise Problem(
                "tools and a form of the answer exclude each other; send one, or tool_choice: none",
                param="tools",
            )
        several = given.get("parallel_tool_calls") is not False
        try:
            changes["regex"] = tool_formats.pattern(
                served.spelling, tools, free=free, several=several
            )
        except ConfigError as error:
            raise Problem(str(error), param="tools") from None
    user, users = served.user(given), served.session.users
    if user is not None and users is not None:
        messages = [dict(one) for one in with_system(users.read(user), messages)]
    messages, sources = served.grounded(messages)
    ids = _chat_ids(served, messages, tools, values)
    settings = Generation(**changes)
    return Ask(
        served,
        [Prompt(ids, settings, user=user)],
        settings.n_best or settings.samples,
        detail,
        tools=tools,
        free=free,
        given=given,
        sources=sources,
        **_streaming(given),
    )


def _chat_ids(
    served: Served, messages: list[dict[str, Any]], tools: list[Tool], values: dict[str, Any]
) -> tuple[int, ...]:
    try:
        return served.chat_ids(messages, tools, values)
    except ConfigError as error:
        name = str(error).partition("=")[0]
        param = "chat_template_kwargs" if name in values else "messages"
        param = name if name == "reasoning_effort" else param
        raise Problem(str(error), param=param) from None


def completion(served: Served, body: Mapping[str, Any], lenient: bool) -> Ask:
    """Return the request of /v1/completions."""
    given = read(body, fields.COMPLETION, lenient=lenient)
    _check_generates(served)
    texts = _prompts(given["prompt"], served)
    changes = settings_of(given, fields.COMPLETION) | _more_settings(given, served)
    settings, streaming = Generation(**changes), _streaming(given)
    prompts = number_prompts(texts, settings, served.user(given))
    if len(prompts) * settings.draws_each > fields.MOST_TEXTS:
        raise Problem(
            f"{len(prompts)} prompts of {settings.draws_each} texts are more than "
            f"{fields.MOST_TEXTS} texts; send fewer at once",
            param="prompt",
        )
    decode = served.session.tokenizer.decode
    shown = [one if isinstance(one, str) else decode(list(one)) for one in texts]
    texts_each = settings.n_best or settings.samples
    echo = shown if given.get("echo") else None
    detail = given.get("logprobs")
    return Ask(served, prompts, texts_each, detail, echo=echo, given=given, **streaming)


def _streaming(given: Mapping[str, Any]) -> dict[str, Any]:
    stream, options = given.get("stream", False), given.get("stream_options")
    if options is not None and not stream:
        raise Problem("stream_options needs stream: true", param="stream_options")
    return {"stream": stream, "usage": bool(options and options.get("include_usage"))}


def _check_generates(served: Served) -> None:
    if not served.generates:
        raise Problem(f"the model {served.name} makes no text; it embeds", param="model")


def _more_settings(given: Mapping[str, Any], served: Served) -> dict[str, Any]:
    """Return what of the fields is no setting by another name."""
    seed = given.get("seed")
    more: dict[str, Any] = {"seed": secrets.randbits(64) if seed is None else seed % SEEDS}
    stop = given.get("stop")
    if stop is not None:
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        if len(strings) > fields.MOST_STOPS:
            raise Problem(
                f"stop has {len(strings)} strings; send at most {fields.MOST_STOPS}", param="stop"
            )
        more["stop"] = strings
    biases, size = given.get("logit_bias") or {}, served.session.tokenizer.vocab_size
    for token, amount in biases.items():
        if not re.fullmatch("[0-9]{1,9}", token) or int(token) >= size:
            raise Problem(f"logit_bias: {token!r:.40} is no id below {size}", param="logit_bias")
        if not -100 <= amount <= 100:
            raise Problem(f"logit_bias.{token}={amount} must be -100 to 100", param="logit_bias")
    if biases:
        more["bias_ids"] = tuple(f"{token}={amount}" for token, amount in biases.items())
    schema, regex = given.get("json_schema"), given.get("regex")
    if schema is not None and schema.startswith("@"):
        raise Problem("json_schema must be a schema as JSON", param="json_schema")
    if regex is not None and len(regex) > LONGEST_REGEX:
        raise Problem(f"regex has more than {LONGEST_REGEX} characters", param="regex")
    best, count = given.get("best_of"), given.get("n", 1)
    if best is not None and best < count:
        raise Problem(f"best_of={best} is less than n={count}", param="best_of")
    if best is not None and best > count and given.get("stream"):
        raise Problem("best_of can't be streamed: it is known at the end which", param="best_of")
    if best == count:
        more["best_of"] = None  # all of them are the best
    return more


def _form(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a form of the answer.

    Where a schema says nothing of a part, it holds any texts, numbers and words, and objects and
    lists of those: each further level would make the automaton four times as large.
    """
    kind = form.get("type", "text")
    if kind == "text":
        return {}
    if kind == "regex":
        if not form.get("regex"):
            raise Problem("response_format.regex is missing", param="response_format")
        return {"regex": form["regex"]}
    schema = form.get("schema", {"type": "object"})
    try:
        return {"regex": pattern_of(schema, exact=form.get("strict") is True)}
    except ConfigError as error:
        raise Problem(str(error), param="response_format") from None


def _prompts(prompt: Any, served: Served) -> list[str | list[int]]:
    """Return the prompts of /v1/completions: a text, ids, or a list of either."""
    if isinstance(prompt, str):
        rows: list[Any] = [prompt]
    elif not isinstance(prompt, list) or not prompt:
        raise Problem("prompt must be a text, token ids, or a list of them", param="prompt")
    else:
        rows = prompt if isinstance(prompt[0], str | list) else [prompt]
    if len(rows) > fields.MOST_INPUTS:
        raise Problem(f"prompt holds more than {fields.MOST_INPUTS}", param="prompt")
    size, kind = served.session.tokenizer.vocab_size, type(rows[0])
    for number, row in enumerate(rows):
        if type(row) is not kind:
            raise Problem(f"prompt[{number}] is of another kind than the first", param="prompt")
        for token in row if isinstance(row, list) else ():
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
                raise Problem(f"prompt: {token!r:.40} is no id below {size}", param="prompt")
        if not row:
            raise Problem(f"prompt[{number}] is empty; give at least one token", param="prompt")
    return rows


def _messages(rows: Sequence[Any], lenient: bool, where: str = "messages") -> list[dict[str, Any]]:
    """Return messages as templates read them."""
    if not rows:
        raise Problem(f"{where} is empty; send at least one", param=where)
    return [_message(row, f"{where}[{i}]", lenient) for i, row in enumerate(rows)]


def _message(row: Any, path: str, lenient: bool) -> dict[str, Any]:
    role = row.get("role") if isinstance(row, Mapping) else None
    table = fields.MESSAGES.get(role) if isinstance(role, str) else None
    if table is None:
        roles = ", ".join(fields.MESSAGES)
        raise Problem(f"{path}.role={role!r:.40} is none of {roles}", param=f"{path}.role")
    message = read(row, table, path, lenient=lenient)
    message["role"] = "system" if role == "developer" else role
    content, refusal = message.get("content"), message.pop("refusal", None)
    if isinstance(content, list):
        content = "".join(part.get("text") or part.get("refusal", "") for part in content)
    content = content or refusal if refusal is not None else content
    if content is not None:
        message["content"] = content
    if message.get("tool_calls"):
        calls = enumerate(message["tool_calls"])
        message["tool_calls"] = [_past_call(one, f"{path}.tool_calls[{i}]") for i, one in calls]
    elif content is None:
        raise Problem(f"{path}.content is missing", param=f"{path}.content")
    return message


def _past_call(call: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a call of an earlier turn, its arguments as the object that templates read."""
    function, name = call["function"], f"{path}.function.arguments"
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        raise Problem(f"{name} is no JSON", param=name) from None
    return {"id": call["id"], "function": {"name": function["name"], "arguments": arguments}}


def _choice(given: Mapping[str, Any], tools: list[Tool]) -> tuple[list[Tool], bool]:
    """Return (the tools that may be called, whether the turn may be none of them)."""
    names = [tool["name"] for tool in tools]
    for number, name in enumerate(names):
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
            path = f"tools[{number}].name"
            rule = "must be 1 to 64 of a-z, A-Z, 0-9, _, . and -"
            raise Problem(f"{path}={name!r:.80} {rule}", param=path)
    if len(set(names)) < len(names):
        raise Problem("two tools have one name", param="tools")
    choice = given.get("tool_choice", "auto" if tools else "none")
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        about = choice.get("allowed_tools", choice)
        listed = about.get("tools") if isinstance(about, Mapping) else None
        wanted = [_called(one) for one in listed] if isinstance(listed, list) else []
        choice = about.get("mode", "auto") if isinstance(about, Mapping) else None
        tools = [tool for tool in tools if tool["name"] in wanted]
    if choice == "none":
        return [], True
    if choice in ("auto", "required"):
        if not tools:
            raise Problem(f"tool_choice={choice} without tools", param="tool_choice")
        return tools, choice == "auto"
    name = _called(choice)
    if not isinstance(name, str):
        raise Problem(
            "tool_choice must be none, auto, required, or a function's name in an object",
            param="tool_choice",
        )
    chosen = [tool for tool in tools if tool["name"] == name]
    if not chosen:
        raise Problem(f"tool_choice: no tool is called {name!r:.80}", param="tool_choice")
    return chosen, False


def _called(choice: Any) -> Any:
    """Return the name in {"type": "function", "function": {"name": ...}}, or in the flat form."""
    function = choice.get("function", choice) if isinstance(choice, Mapping) else None
    return function.get("name") if isinstance(function, Mapping) else None


def token_ids(served: Served, given: Mapping[str, Any], lenient: bool) -> list[int]:
    """Return the ids that /tokenize asks for."""
    if "prompt" in given:
        model = served.session.model
        if given.get("add_special_tokens", True):
            return list(model.ids(given["prompt"]))
        return list(model.tokenizer.encode(given["prompt"]))
    tools = [one["function"] for one in given.get("tools", ())]
    values = given.get("chat_template_kwargs", {})
    return list(served.chat_ids(_messages(given["messages"], lenient), tools, values))
