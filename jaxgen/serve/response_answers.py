"""Answers in the objects and events of /v1/responses."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxgen.serve.answers import Choice, Row, call_id, token_rows
from jaxgen.serve.requests import Ask
from jaxgen.text.tool_calls import Called, Part, Said


@dataclass
class ResponseAnswer:
    """A response, and the events that add up to it."""

    ask: Ask
    request: str
    created: int = field(default_factory=lambda: int(time.time()))
    number: int = 0  # of the next event
    output: list[dict[str, Any]] = field(default_factory=list)  # items while they are streamed

    def whole(self, choices: Sequence[Choice], cost: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer at once."""
        (choice,) = choices
        items, calls = [], [] if choice.reader is None else choice.reader.calls
        if choice.text or not calls:
            items.append(self._message(choice.text, choice.rows, len(items)))
        for place, call in enumerate(calls):
            items.append(self._call(place, call.name, call.arguments))
        return self._about(choice, items, cost)

    def _about(
        self,
        choice: Choice | None,
        items: Sequence[Mapping[str, Any]] = (),
        cost: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        given, ended = self.ask.given, None if choice is None else choice.finish_reason
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(ended or "")
        status = "in_progress" if choice is None else "incomplete" if cut else "completed"
        return {
            "id": f"resp_{self.request}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": cut} if cut else None,
            "instructions": given.get("instructions"),
            "max_output_tokens": given.get("max_output_tokens"),
            "metadata": given.get("metadata") or {},
            "model": self.ask.served.name,
            "output": list(items),
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "store": False,
            "temperature": given.get("temperature"),
            "text": given.get("text") or {"format": {"type": "text"}},
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": list(given.get("tools") or ()),
            "top_p": given.get("top_p"),
            "truncation": "disabled",
            "usage": None if cost is None else _usage(cost),
            **self.ask.source_fields,
        }

    def _message(
        self, text: str, rows: Sequence[Row], place: int, status: str = "completed"
    ) -> dict[str, Any]:
        about = {"type": "message", "id": f"msg_{self.request}_{place}", "role": "assistant"}
        content = [self._part(text, rows)] if status == "completed" else []
        return about | {"status": status, "content": content}

    def _part(self, text: str, rows: Sequence[Row]) -> dict[str, Any]:
        shown = [] if self.ask.detail is None else token_rows(self.ask.served, rows)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": shown}

    def _call(
        self, place: int, name: str, arguments: str, status: str = "completed"
    ) -> dict[str, Any]:
        return {
            "type": "function_call",
            "id": f"fc_{self.request}_{place}",
            "call_id": call_id(self.request, 0, place),
            "name": name,
            "arguments": arguments,
            "status": status,
        }

    def _event(self, kind: str, **about: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number - 1} | about

    def first(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the events that open the response."""
        for kind in ("created", "in_progress"):
            yield self._event(kind, response=self._about(None))

    def more(
        self, choice: Choice, parts: Sequence[Part], rows: Sequence[Row]
    ) -> Iterator[dict[str, Any]]:
        """Yield the events of a piece; its tokens go with the first of a text."""
        for part in parts:
            if isinstance(part, Said):
                if not self.output:
                    yield from self._open(self._message("", [], 0, "in_progress"))
                shown = token_rows(self.ask.served, rows)
                rows = []
                yield self._event(
                    "output_text.delta", delta=part.text, logprobs=shown, **self._text
                )
            elif isinstance(part, Called):
                yield from self._close(choice)
                yield from self._open(self._call(part.place, part.name, "", "in_progress"))
            else:
                self.output[-1]["arguments"] += part.text
                yield self._event("function_call_arguments.delta", delta=part.text, **self._item)

    @property
    def _item(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    @property
    def _text(self) -> dict[str, Any]:
        return self._item | {"content_index": 0}

    def _open(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.output.append(item)
        place = len(self.output) - 1
        yield self._event("output_item.added", item=dict(item), output_index=place)
        if item["type"] == "message":
            yield self._event("content_part.added", part=self._part("", []), **self._text)

    def _close(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the events that end the item that is open."""
        if not self.output or self.output[-1]["status"] == "completed":
            return
        item = self.output[-1]
        if item["type"] == "message":
            part = self._part(choice.text, choice.rows)
            about = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("output_text.done", **about, **self._text)
            yield self._event("content_part.done", part=part, **self._text)
            item["content"] = [part]
        else:
            about = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("function_call_arguments.done", **about, **self._item)
        item["status"] = "completed"
        place = len(self.output) - 1
        yield self._event("output_item.done", item=dict(item), output_index=place)

    def last(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the events that end what is open."""
        if not self.output:
            yield from self._open(self._message("", [], 0, "in_progress"))
        yield from self._close(choice)

    def end(self, choices: Sequence[Choice], cost: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the event of the whole response."""
        made = self._about(choices[0], self.output, cost)
        kind = "completed" if made["status"] == "completed" else "incomplete"
        yield self._event(kind, response=made)


def _usage(cost: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": cost["prompt_tokens"],
        "input_tokens_details": dict(cost["prompt_tokens_details"]),
        "output_tokens": cost["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": cost["total_tokens"],
    }
