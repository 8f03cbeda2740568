"""Chats as records: lists of messages, in the words of Hugging Face or of ShareGPT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jaxgen.data.document import Document
from jaxgen.data.record_values import kind_name, sound_text
from jaxgen.data.streams import Bad, Tally

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words


class Messages(str):
    """The name of a field that holds the messages of a chat, where others hold a text."""


def chat_of(value: Any, key: str, where: str) -> str:
    """Return a chat as JSON, its messages named as Hugging Face names them (role, content)."""
    if not isinstance(value, list) or not value:
        raise Bad("no messages", f"{where}: {key!r} is {kind_name(value)}, not a list of messages")
    rows = []
    for number, row in enumerate(value):
        if isinstance(row, dict) and {"from", "value"} <= row.keys():  # as ShareGPT names them
            more = {name: row[name] for name in row if name not in ("from", "value")}
            row = {"role": ROLES.get(row["from"], row["from"]), "content": row["value"]} | more
        if not isinstance(row, dict) or not isinstance(row.get("role"), str):
            raise Bad(
                "no messages",
                f"{where}: message {number} of {key!r} has no role; write role and content",
            )
        rows.append({name: item for name, item in row.items() if item is not None})
    return sound_text(json.dumps(rows, ensure_ascii=False), where)


def answers_of(chat: str) -> list[int]:
    """Return the numbers of the assistant's turns that follow something, in a chat as JSON."""
    rows = json.loads(chat)
    return [number for number, row in enumerate(rows) if row["role"] == "assistant" and number]


def turns_of(chat: str, source: str, tally: Tally) -> Iterator[Document]:
    """Yield a document for each turn of the assistant: the whole chat, and the turn's number."""
    turns = answers_of(chat)
    if not turns:
        tally.skipped["chat without an answer"] += 1
    for turn in turns:
        yield Document(chat, source, str(turn))


def spoken(document: Document) -> Iterator[str]:
    """Yield the words of a chat's messages at the first of its turns, nothing at the others."""
    if document.target == str(answers_of(document.text)[0]):
        rows = json.loads(document.text)
        yield from (row["content"] for row in rows if isinstance(row.get("content"), str))
