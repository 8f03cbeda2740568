"""Answers in OpenAI's objects: whole, or as the chunks that add up to them."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxgen.decoding.stop import Reason
from jaxgen.serve.requests import Ask
from jaxgen.serve.served import Served
from jaxgen.text import moderation
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.text_stream import TextStream
from jaxgen.text.tool_calls import Called, CallReader, Marked, Part, Said

FINISHED = {
    Reason.STOP: "stop",
    Reason.STRING: "stop",
    Reason.LENGTH: "length",
    Reason.TIME: "length",
    Reason.FILTER: "content_filter",
}
NEVER = 2**40
Row = tuple[int, float, Sequence[Any]]  # a token, its log-probability, its alternatives


@dataclass
class Choice:
    """One text of an answer while it comes: what has been said, and what it is made of."""

    ask: Ask
    index: int
    text: str = ""
    rows: list[Row] = field(default_factory=list)
    completion: Completion | None = None
    reader: CallReader | None = None
    _taken: int = 0
    _seen: int = 0

    def __post_init__(self) -> None:
        if self.ask.tools:
            served = self.ask.served
            tools = {tool["name"]: tool for tool in self.ask.tools}
            self.reader = CallReader(served.spelling, tools, self.ask.free)
            marks = [served.spelling.trigger, "[ARGS]"]
            shown: Any = Marked(served.session.tokenizer, marks)
            settings = self.ask.prompts[0].settings
            ends = (*served.session.model.stop, *settings.stop_ids)
            passed = moderation.filters(served.session.policy)
            self.stream = TextStream(shown, (), settings.stop, NEVER, ends, passed)

    def take(
        self,
        text: str,
        tokens: Sequence[int],
        logprobs: Sequence[float] | None = None,
        top: Sequence[Any] | None = None,
    ) -> tuple[list[Part], list[Row]]:
        """Take a piece of the text; return its parts and its tokens with log-probabilities."""
        self._taken, self._seen = self._taken + len(tokens), self._seen + len(text)
        if self.reader is None:
            parts: list[Part] = [Said(text)] if text else []
            self.text += text
        else:
            parts = self.reader.push(self.stream.push(tokens))
            self.text = self.reader.said
        rows: list[Row] = []
        if self.ask.detail is not None and logprobs:
            all_top = top or [[]] * len(tokens)
            rows = [
                (token, logprob, best[: self.ask.detail])
                for token, logprob, best in zip(tokens, logprobs, all_top, strict=True)
                if token not in self.ask.served.ends
            ]
            self.rows += rows
        return parts, rows

    def finish(self, completion: Completion) -> tuple[list[Part], list[Row]]:
        """Take the whole text; return what had not come in pieces."""
        self.completion, since = completion, self._taken
        rest = completion.text[self._seen :]
        logprobs = list(completion.logprobs)[since:]
        parts, rows = self.take(
            rest, completion.tokens[since:], logprobs, list(completion.top)[since:]
        )
        if self.reader is not None:
            if self.stream.reason is None:
                parts += self.reader.push(self.stream.end(completion.reason))
            parts += self.reader.flush()
            self.text = self.reader.said
        return parts, rows

    @property
    def finish_reason(self) -> str:
        """Return why it ended."""
        assert self.completion is not None
        reason = FINISHED.get(self.completion.reason, "stop")
        called = self.reader is not None and self.reader.calls and reason == "stop"
        return "tool_calls" if called else reason

    @property
    def num_tokens(self) -> int:
        """Return how many tokens it has cost so far."""
        return self._taken


def call_id(request: str, choice: int, place: int) -> str:
    """Return the id of a call: nine letters and digits, as some templates want it."""
    return hashlib.sha256(f"{request}/{choice}/{place}".encode()).hexdigest()[:9]


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """Return what an answer has cost in tokens."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@dataclass
class Answer(ABC):
    """Objects of a route: the answer at once, or the chunks that add up to it."""

    ask: Ask
    request: str
    created: int = field(default_factory=lambda: int(time.time()))
    kinds: ClassVar[tuple[str, str, str]]  # what its id begins with; its name at once, in chunks

    def _about(self, kind: str) -> dict[str, Any]:
        about = {"id": f"{self.kinds[0]}-{self.request}", "object": kind, "created": self.created}
        about |= {"model": self.ask.served.name, "system_fingerprint": None}
        return about | self.ask.source_fields

    def whole(self, choices: Sequence[Choice], cost: dict[str, Any]) -> dict[str, Any]:
        """Return the answer at once."""
        rows = [self._whole(one) | {"finish_reason": one.finish_reason} for one in choices]
        return self._about(self.kinds[1]) | {"choices": rows, "usage": cost}

    def first(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the chunk that opens a choice."""
        yield self._chunk(self._opening(choice))

    def more(
        self, choice: Choice, parts: Sequence[Part], rows: Sequence[Row]
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a piece; its tokens go with the first of them."""
        for row in self._pieces(choice, parts, rows):
            yield self._chunk(row)

    def last(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the chunk that ends a choice."""
        yield self._chunk(self._closing(choice) | {"finish_reason": choice.finish_reason})

    def end(self, choices: Sequence[Choice], cost: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunk of what it has cost, if that was asked for."""
        if self.ask.usage:
            yield self._about(self.kinds[2]) | {"choices": [], "usage": cost}

    @abstractmethod
    def _whole(self, choice: Choice) -> dict[str, Any]: ...

    @abstractmethod
    def _opening(self, choice: Choice) -> dict[str, Any]: ...

    @abstractmethod
    def _closing(self, choice: Choice) -> dict[str, Any]: ...

    @abstractmethod
    def _pieces(
        self, choice: Choice, parts: Sequence[Part], rows: Sequence[Row]
    ) -> Iterator[Any]: ...

    def _chunk(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk = self._about(self.kinds[2]) | {"choices": [row]}
        return chunk | ({"usage": None} if self.ask.usage else {})


class ChatAnswer(Answer):
    """Objects of /v1/chat/completions."""

    kinds = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _whole(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        calls = [] if choice.reader is None else choice.reader.calls
        if calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [
                self._call(choice, place, call.name, call.arguments)
                for place, call in enumerate(calls)
            ]
        row = {"index": choice.index, "message": message}
        return row | {"logprobs": self._logprobs(choice.rows)}

    def _call(self, choice: Choice, place: int, name: str, arguments: str) -> dict[str, Any]:
        about = {"id": call_id(self.request, choice.index, place), "type": "function"}
        return about | {"function": {"name": name, "arguments": arguments}}

    def _logprobs(self, rows: Sequence[Row]) -> dict[str, Any] | None:
        if self.ask.detail is None:
            return None
        return {"content": token_rows(self.ask.served, rows), "refusal": None}

    def _opening(self, choice: Choice) -> dict[str, Any]:
        return self._delta(choice, {"role": "assistant", "content": "", "refusal": None})

    def _closing(self, choice: Choice) -> dict[str, Any]:
        return self._delta(choice, {})

    def _pieces(self, choice: Choice, parts: Sequence[Part], rows: Sequence[Row]) -> Iterator[Any]:
        for part in parts or ([Said("")] if rows else ()):
            if isinstance(part, Said):
                delta: dict[str, Any] = {"content": part.text}
            elif isinstance(part, Called):
                call = self._call(choice, part.place, part.name, "")
                delta = {"tool_calls": [{"index": part.place} | call]}
            else:
                delta = {
                    "tool_calls": [{"index": part.place, "function": {"arguments": part.text}}]
                }
            yield self._delta(choice, delta, rows)
            rows = []

    def _delta(
        self, choice: Choice, delta: dict[str, Any], rows: Sequence[Row] = ()
    ) -> dict[str, Any]:
        logprobs = self._logprobs(rows) if rows else None
        about = {"index": choice.index, "delta": delta, "logprobs": logprobs}
        return about | {"finish_reason": None}


@dataclass
class TextAnswer(Answer):
    """Objects of /v1/completions.

    scores: of the prompts that are echoed, (log-probabilities, alternatives) of their tokens.
    """

    kinds = "cmpl", "text_completion", "text_completion"
    ids: list[list[int]] = field(default_factory=list)
    scores: list[Any] | None = None
    _offsets: dict[int, int] = field(default_factory=dict)

    def _echo(self, choice: Choice) -> tuple[str, list[Any]]:
        """Return what of its prompt comes before a choice."""
        if self.ask.echo is None:
            return "", []
        place = choice.index // self.ask.texts
        rows: list[Any] = []
        if self.scores is not None:
            logprobs, top = self.scores[place]
            ids = self.ids[place]
            rows = list(zip(ids, [None, *logprobs], [None, *top], strict=True))
        return self.ask.echo[place], rows

    def _whole(self, choice: Choice) -> dict[str, Any]:
        before, rows = self._echo(choice)
        return self._row(choice, before + choice.text, [*rows, *choice.rows])

    def first(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the prompt, if it is to come back."""
        return iter(()) if self.ask.echo is None else super().first(choice)

    def _opening(self, choice: Choice) -> dict[str, Any]:
        return self._row(choice, *self._echo(choice))

    def _closing(self, choice: Choice) -> dict[str, Any]:
        return self._row(choice, "", [])

    def _pieces(self, choice: Choice, parts: Sequence[Part], rows: Sequence[Row]) -> Iterator[Any]:
        text = "".join(part.text for part in parts if isinstance(part, Said))
        if text or rows:
            yield self._row(choice, text, rows)

    def _row(self, choice: Choice, text: str, rows: Sequence[Any]) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": text,
            "logprobs": self._logprobs(choice.index, rows),
            "finish_reason": None,
        }

    def _logprobs(self, index: int, rows: Sequence[Any]) -> dict[str, Any] | None:
        if self.ask.detail is None:
            return None
        spell, place = self.ask.served.spell, self._offsets.get(index, 0)
        tokens = [spell(token) for token, *_ in rows]
        offsets = []
        for token in tokens:
            offsets.append(place)
            place += len(token)
        self._offsets[index] = place
        top = [best and {spell(one.id): one.logprob for one in reversed(best)} for *_, best in rows]
        return {
            "tokens": tokens,
            "token_logprobs": [logprob for _, logprob, _ in rows],
            "top_logprobs": top if self.ask.detail else None,
            "text_offset": offsets,
        }


def token_rows(served: Served, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return tokens with their log-probabilities and alternatives, as chat shows them."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        raw = served.spell_bytes(token)
        text = raw.decode("utf-8", errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    return [
        one(token, logprob) | {"top_logprobs": [one(best.id, best.logprob) for best in top]}
        for token, logprob, top in rows
    ]


def event(data: Any, name: str | None = None) -> bytes:
    """Return a server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode("utf-8", errors="replace")
