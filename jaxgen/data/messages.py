"""Chats as records: messages, tools and prompts, in the words of Hugging Face or of ShareGPT."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jaxgen.data.record_values import kind_name, sound_text
from jaxgen.data.settings import FIELD, MESSAGES
from jaxgen.data.streams import Bad
from jaxgen.errors import nearest

SHAREGPT = {"human": "user", "gpt": "assistant"}
SILENT = ("tool", "function", "ipython", "environment")  # who may have nothing to say
ROLES = ("system", "developer", "user", "assistant", *SILENT)
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
PROMPT, COMPLETION = "prompt", "completion"
EXTRA = ("tools", "chat_template_kwargs")


def chat_record(record: Mapping[str, Any], field: str, where: str) -> dict[str, Any] | None:
    """Return a chat: its messages, as Hugging Face names them, and what the template also reads.

    A prompt and its completion, lists of messages both, are one chat of which only the turns of the
    completion are learnt ("from"). None for a record that has neither. Raises Bad.
    """
    value: Any = record
    for name in [field] if field in record else field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    begin = 0
    if value is not None or field in record:
        rows = messages_of(value, field, where)
    elif {PROMPT, COMPLETION} <= record.keys():
        for name in (PROMPT, COMPLETION):
            if isinstance(record[name], str):
                raise Bad(
                    "no messages",
                    f"{where}: {name!r} is a string, not a list of messages; prompts and "
                    f"completions that are plain texts are objective.name=pairs",
                )
        rows = messages_of(record[PROMPT], PROMPT, where)
        begin = len(rows)
        rows += messages_of(record[COMPLETION], COMPLETION, where)
    else:
        return None
    chat = {"messages": rows, **extras(record, where)} | ({"from": begin} if begin else {})
    if not learnt_turns(chat):
        raise Bad("no assistant turn", f"{where} has no turn of the assistant to learn from")
    return chat


def messages_of(value: Any, key: str, where: str) -> list[dict[str, Any]]:
    """Return messages named as Hugging Face names them (role, content), each checked; or Bad."""
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else f"{kind_name(value)}, not a list of messages"
        raise Bad("no messages", f"{where}: {key!r} is {kind}")
    return [_message(row, f"{where}: message {n} of {key!r}") for n, row in enumerate(value)]


def _message(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, dict) and {"from", "value"} <= row.keys():  # as ShareGPT names them
        more = {name: row[name] for name in row if name not in ("from", "value")}
        row = {"role": row["from"], "content": row["value"]} | more
        row["role"] = SHAREGPT.get(str(row["role"]), row["role"])
    if not isinstance(row, dict) or not isinstance(row.get("role"), str):
        raise Bad("no messages", f"{where} has no role; write role and content")
    row = {name: item for name, item in row.items() if item is not None}
    role, content = row["role"], row.get("content")
    if role not in ROLES:
        near = nearest(role, ROLES) or f"; roles are {', '.join(ROLES)}"
        raise Bad("unknown role", f"{where} has the role {role!r}{near}")
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text"
                    and isinstance(part.get("text"), str)):  # fmt: skip
                kind = part.get("type") if isinstance(part, dict) else kind_name(part)
                raise Bad("not text", f"{where} has a part of the type {kind!r}; only text is read")
        said = "".join(part["text"] for part in content)
    elif content is None or isinstance(content, str):
        said = content or ""
    else:
        raise Bad("not text", f"{where} has a content that is {kind_name(content)}, not a text")
    more = role == "assistant" and (row.get("tool_calls") or any(row.get(n) for n in THOUGHTS))
    if not said.strip() and not more and not (role in SILENT and content is not None):
        raise Bad("empty content", f"{where} has no content", "write some, or remove the message")
    if row.get("weight", 1) not in (0, 1):
        raise Bad("weight", f"{where} has weight={row['weight']!r}; 0 (not learnt) and 1 work")
    return row


def extras(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a template reads beside the messages: tools, which may be JSON, and values."""
    found = {name: record[name] for name in EXTRA if record.get(name)}
    if isinstance(found.get("tools"), str):
        try:
            found["tools"] = json.loads(found["tools"])
        except (ValueError, RecursionError) as error:
            raise Bad("tools", f"{where}: 'tools' is not JSON: {error}") from error
    for name, kind in zip(EXTRA, (list, dict), strict=True):
        if name in found and not isinstance(found[name], kind):
            wanted = "a list of JSON schemas" if kind is list else "an object"
            raise Bad(name, f"{where}: {name!r} is {kind_name(found[name])}, not {wanted}")
    return {name: value for name, value in found.items() if value}


def learnt_turns(chat: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the assistant's turns that are learnt: all that follow something."""
    begin = max(chat.get("from", 0), 1)
    return [
        number
        for number, row in enumerate(chat["messages"])
        if row["role"] == "assistant" and number >= begin and row.get("weight", 1)
    ]


def as_json(value: Any, where: str) -> str:
    """Return a record as JSON, dates and the like as texts; Bad for what no text can hold."""
    return sound_text(json.dumps(value, ensure_ascii=False, default=str), where)


def words_of(text: str) -> Iterator[str]:
    """Yield what is said in a record as JSON: contents of messages, and texts that are none."""
    yield from _words(json.loads(text))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif isinstance(value, dict):
        known = ("content", "text", *THOUGHTS) if "role" in value or "type" in value else value
        for name in known:
            if name in value and name not in EXTRA:
                yield from _words(value[name])


def messages_field(field: str) -> str:
    """Return the field of a record's messages, unless another than the text's is named."""
    return MESSAGES if field == FIELD else field
