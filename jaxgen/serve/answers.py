"""Answers in OpenAI's objects: whole, or as the chunks that add up to them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxgen.decoding.stop import Reason
from jaxgen.serve.requests import Ask
from jaxgen.serve.served import Served
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.text_stream import TextStream
from jaxgen.text.tool_calls import Called, CallReader, Marked, Part, Said

FINISHED = {
    Reason.STOP: "stop",
    Reason.STRING: "stop",
    Reason.LENGTH: "length",
    Reason.TIME: "length",
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
            self.stream = TextStream(shown, (), settings.stop, NEVER, ends)

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
    import hashlib

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
class ChatAnswer:
    """Objects of /v1/chat/completions."""

    ask: Ask
    request: str
    created: int = field(default_factory=lambda: int(time.time()))

    def _about(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.request}",
            "object": kind,
            "created": self.created,
            "model": self.ask.served.name,
            "system_fingerprint": None,
        }

    def whole(self, choices: Sequence[Choice], cost: dict[str, Any]) -> dict[str, Any]:
        """Return the answer at once."""
        return self._about("chat.completion") | {
            "choices": [self._choice(one) for one in choices],
            "usage": cost,
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.reader is not None and choice.reader.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [
                {
                    "id": call_id(self.request, choice.index, place),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for place, call in enumerate(choice.reader.calls)
            ]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.rows),
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, rows: Sequence[Row]) -> dict[str, Any] | None:
        if self.ask.detail is None:
            return None
        return {"content": token_rows(self.ask.served, rows), "refusal": None}

    def first(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the chunk that opens a choice."""
        yield self._chunk(choice, {"role": "assistant", "content": "", "refusal": None})

    def more(
        self, choice: Choice, parts: Sequence[Part], rows: Sequence[Row]
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a piece; its tokens go with the first of them."""
        for number, part in enumerate(parts):
            yield self._chunk(choice, self._delta(choice, part), rows if not number else [])
        if rows and not parts:
            yield self._chunk(choice, {"content": ""}, rows)

    def _delta(self, choice: Choice, part: Part) -> dict[str, Any]:
        if isinstance(part, Said):
            return {"content": part.text}
        if isinstance(part, Called):
            about: dict[str, Any] = {
                "id": call_id(self.request, choice.index, part.place),
                "type": "function",
                "function": {"name": part.name, "arguments": ""},
            }
        else:
            about = {"function": {"arguments": part.text}}
        return {"tool_calls": [{"index": part.place} | about]}

    def last(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the chunk that ends a choice."""
        yield self._chunk(choice, {}, end=choice.finish_reason)

    def _chunk(
        self,
        choice: Choice,
        delta: dict[str, Any],
        rows: Sequence[Row] = (),
        end: str | None = None,
    ) -> dict[str, Any]:
        row = {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._logprobs(rows) if rows else None,
            "finish_reason": end,
        }
        nothing = {"usage": None} if self.ask.usage else {}
        return self._about("chat.completion.chunk") | {"choices": [row]} | nothing

    def end(self, choices: Sequence[Choice], cost: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunk of what it has cost, if that was asked for."""
        if self.ask.usage:
            yield self._about("chat.completion.chunk") | {"choices": [], "usage": cost}


@dataclass
class TextAnswer:
    """Objects of /v1/completions.

    scores: of the prompts that are echoed, (log-probabilities, alternatives) of their tokens.
    """

    ask: Ask
    request: str
    created: int = field(default_factory=lambda: int(time.time()))
    ids: list[list[int]] = field(default_factory=list)
    scores: list[Any] | None = None
    _offsets: dict[int, int] = field(default_factory=dict)

    def _about(self) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self.request}",
            "object": "text_completion",
            "created": self.created,
            "model": self.ask.served.name,
            "system_fingerprint": None,
        }

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

    def whole(self, choices: Sequence[Choice], cost: dict[str, Any]) -> dict[str, Any]:
        """Return the answer at once."""
        made = []
        for choice in choices:
            before, rows = self._echo(choice)
            row = self._row(choice, before + choice.text, [*rows, *choice.rows])
            made.append(row | {"finish_reason": choice.finish_reason})
        return self._about() | {"choices": made, "usage": cost}

    def first(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the prompt, if it is to come back."""
        before, rows = self._echo(choice)
        if before:
            yield self._chunk(self._row(choice, before, rows))

    def more(
        self, choice: Choice, parts: Sequence[Part], rows: Sequence[Row]
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunk of a piece."""
        text = "".join(part.text for part in parts if isinstance(part, Said))
        if text or rows:
            yield self._chunk(self._row(choice, text, rows))

    def last(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Yield the chunk that ends a choice."""
        yield self._chunk(self._row(choice, "", []) | {"finish_reason": choice.finish_reason})

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

    def _chunk(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._about() | {"choices": [row]} | ({"usage": None} if self.ask.usage else {})

    def end(self, choices: Sequence[Choice], cost: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunk of what it has cost, if that was asked for."""
        if self.ask.usage:
            yield self._about() | {"choices": [], "usage": cost}


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
