"""Calls of tools read from a text while it arrives: what is told at once is what was streamed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from jaxgen.pretrained.chat_template import ChatTemplate
from jaxgen.text.text_stream import StopStringFilter
from jaxgen.text.tool_formats import Tool, ToolFormat, instructions, read_xml, reads_tools


class Said(NamedTuple):
    """A piece of a text that is no call."""

    text: str


class Called(NamedTuple):
    """The beginning of a call: its place in the turn, and what it calls."""

    place: int
    name: str


class Arguments(NamedTuple):
    """A piece of a call's arguments, as JSON."""

    place: int
    text: str


Part = Said | Called | Arguments


@dataclass
class Call:
    """A call that is whole."""

    name: str
    arguments: str = ""


@dataclass
class CallReader:
    """Takes a text in pieces; returns what each is part of. `said` and `calls` hold all of it.

    free: the text may be other than calls.
    """

    spelling: ToolFormat
    tools: Mapping[str, Tool]
    free: bool
    said: str = ""
    calls: list[Call] = field(default_factory=list)
    _text: str = ""  # from where nothing has been read
    _begun: bool = False  # the calls
    _name: str | None = None
    _json: _JsonEnd | None = None

    def __post_init__(self) -> None:
        self._filter = StopStringFilter([self.spelling.trigger] if self.spelling.trigger else [])
        self._begun = not self.free
        self._before = self.spelling.head + self.spelling.prefix

    def push(self, piece: str) -> list[Part]:
        """Return the parts that a piece completes."""
        self._text += piece
        parts: list[Part] = []
        if not self._begun:
            parts += self._free(piece)
        while self._begun and (more := self._step()):
            parts += more
        return parts

    def flush(self) -> list[Part]:
        """Return what was held back, at the end of the text."""
        if self._begun:
            return []
        rest = self._text if not self.spelling.trigger else self._filter.flush()
        self.said, self._text = self.said + rest, ""
        return [Said(rest)] if rest else []

    def _free(self, piece: str) -> list[Part]:
        if not self.spelling.trigger:
            bare = self._text.lstrip()
            if not self.said and not bare:
                return []
            if not self.said and bare.startswith("{"):
                self._begun, self._text = True, bare
                return []
            shown, self._text = self._text, ""
        else:
            shown = self._filter.push(piece)
            if self._filter.found:
                self._begun = True
                self._text = self._text[self._text.index(self.spelling.trigger) :]
        self.said += shown
        return [Said(shown)] if shown else []

    def _step(self) -> list[Part]:
        """Read on as far as one thing goes; nothing where more of the text is needed."""
        text, middle = self._text, self.spelling.middle
        if self._name is None:
            end = text.find(middle, len(self._before))
            if not text.startswith(self._before) or end < 0:
                return []
            self._name = text[len(self._before) : end]
            self._text, self._json = text[end + len(middle) :], _JsonEnd()
            self.calls.append(Call(self._name))
            return [Called(len(self.calls) - 1, self._name)]
        call, place = self.calls[-1], len(self.calls) - 1
        if self.spelling.xml:
            end = text.find(self.spelling.suffix)
            if end < 0:
                return []
            given = read_xml(text[:end], self.tools.get(call.name))
            arguments, self._text = json.dumps(given, ensure_ascii=False), text[end:]
        else:
            assert self._json is not None
            end = self._json.push(text)
            arguments, self._text = text[:end], text[end:]
        call.arguments += arguments
        parts: list[Part] = [Arguments(place, arguments)] if arguments else []
        if self.spelling.xml or (self._json is not None and self._json.done):
            self._before = self.spelling.suffix + self.spelling.sep + self.spelling.prefix
            self._name = None
        return parts


class _JsonEnd:
    """Finds where an object ends that arrives in pieces."""

    def __init__(self) -> None:
        self.depth, self.inside, self.escaped, self.done = 0, False, False, False

    def push(self, text: str) -> int:
        """Return how many characters of a piece belong to the object."""
        for place, one in enumerate(text):
            if self.escaped:
                self.escaped = False
            elif self.inside:
                self.escaped, self.inside = one == "\\", one != '"'
            elif one == '"':
                self.inside = True
            else:
                self.depth += (one in "[{") - (one in "]}")
                if not self.depth and one in "]}":
                    self.done = True
                    return place + 1
        return len(text)


def chat_ids(
    session: Any,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool] = (),
    values: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Return the ids of a chat with tools up to where the model's turn begins.

    A template that shows no tools gets them in the system's message. values: what else it reads.
    """
    reads = reads_tools(template)
    rows, values = history(messages, plain=not reads), dict(values or {})
    if tools and reads:
        values["tools"] = [{"type": "function", "function": dict(tool)} for tool in tools]
    elif tools:
        system = []
        if rows and rows[0]["role"] == "system":
            system, rows = [rows[0]["content"]], rows[1:]
        text = "\n\n".join([*system, instructions(tools)])
        rows = [{"role": "system", "content": text}, *rows]
    return session.chat_ids(rows, template, **values)


def history(messages: Sequence[Mapping[str, Any]], *, plain: bool) -> list[dict[str, Any]]:
    """Return messages with calls as templates read them: arguments as objects, short ids.

    plain: for a template that knows no tools: calls as the text that they were, results as the
    user's.
    """
    rows, names = [], {}
    for message in messages:
        row = dict(message)
        calls = row.get("tool_calls") or ()
        names.update({call["id"]: call["function"]["name"] for call in calls})
        if plain and calls:
            shown = [
                {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
                for call in calls
            ]
            lines = [json.dumps(one, ensure_ascii=False) for one in shown]
            row.pop("tool_calls")
            row["content"] = "\n".join([*filter(None, [row.get("content")]), *lines])
        elif calls:
            row["tool_calls"] = [
                {**call, "type": "function", "id": short_id(call["id"])} for call in calls
            ]
        if row["role"] == "tool":
            name = names.get(row.get("tool_call_id", ""), row.get("name", ""))
            if plain:
                row = {
                    "role": "user",
                    "content": f"Result of {name or 'the call'}: {row['content']}",
                }
            else:
                row |= {"name": name, "tool_call_id": short_id(row["tool_call_id"])}
        rows.append(row)
    return rows


def short_id(name: str) -> str:
    """Return an id of nine letters and digits, as some templates want it: ours, or made of it."""
    import hashlib

    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:9]


class Marked:
    """A tokenizer whose marks, of some names, are part of the text."""

    def __init__(self, tokenizer: Any, names: Sequence[str]) -> None:
        for name in ("vocab_size", "special", "byte_lengths", "fingerprint", "encode",
                     "encode_many", "decode", "save", "surface"):  # fmt: skip
            setattr(self, name, getattr(tokenizer, name))
        vocabulary = getattr(tokenizer, "vocabulary", dict)()
        shown = {vocabulary[name]: name.encode() for name in names if name in vocabulary}
        pieces = [shown.get(i) or piece for i, piece in enumerate(self.surface.pieces)]
        self.surface: Any = replace(self.surface, pieces=tuple(pieces))
