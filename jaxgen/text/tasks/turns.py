"""Chat: messages in, the model's next turn out, as the folder's own template lays them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxgen.decoding.loop import request_keys
from jaxgen.errors import ConfigError
from jaxgen.ops import keys
from jaxgen.pretrained.chat_template import (
    ChatTemplate,
    Message,
    read_chat_template,
    render_chat,
)
from jaxgen.text.tasks.model import Model, Progress
from jaxgen.text.tasks.writing import room_for, stream, write
from jaxgen.tokens import Detokenizer

BEGIN, END = "\ue000", "\ue001"  # around what only looks like a mark in somebody's words


def ids_of(model: Model, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a chat up to where the model's turn begins.

    Marks are those that the template writes. A piece like them in a message's content is text, so
    that nobody's words can end their turn (transformers: `sanitize_control_tokens`).
    """
    encode = getattr(model.tokenizer, "encode_marked", None)
    if encode is None:
        kind = type(model.tokenizer).__name__.lower()
        raise ConfigError(f"chat needs a tokenizer with marks, and a {kind} one has none")
    marks = sorted(model.tokenizer.marks(), key=len, reverse=True)  # pyright: ignore
    any_mark = re.compile("|".join(map(re.escape, marks)) or "(?!)")
    guarded = [_guarded(message, any_mark) for message in messages]
    text = render_chat(template, guarded)
    ids: list[int] = []
    for place, part in enumerate(re.split(f"{BEGIN}({any_mark.pattern}){END}", text)):
        part = part.replace(BEGIN, "").replace(END, "")
        if part:
            ids += model.tokenizer.encode(part) if place % 2 else encode(part)
    return ids


def _guarded(value: Any, marks: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        value = value.replace(BEGIN, "").replace(END, "")
        return marks.sub(lambda found: f"{BEGIN}{found[0]}{END}", value)
    if isinstance(value, dict):
        return {key: _guarded(item, marks) for key, item in value.items()}
    return [_guarded(item, marks) for item in value] if isinstance(value, list) else value


def chat(
    model: Model,
    chats: Sequence[Sequence[Message]],
    *,
    template: ChatTemplate | None = None,
    length: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch: int = 8,
    progress: Progress | None = None,
) -> list[str]:
    """Return the model's next turn in each chat, a list of {"role": ..., "content": ...}.

    template: None takes the folder's own. The rest is as in `write`. Raises CheckpointError if the
    folder has no template or it is wrong, ConfigError for a chat it refuses or that is too long.
    """
    template = template or template_of(model)
    rows = [ids_of(model, template, messages) for messages in chats]
    draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return write(model, rows, length=length, **draw, seed=seed, batch=batch, progress=progress)


def reply(
    model: Model,
    messages: Sequence[Message],
    *,
    template: ChatTemplate | None = None,
    length: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the model's next turn in pieces; joined, they are what `chat` returns of one chat."""
    row = ids_of(model, template or template_of(model), messages)
    size = room_for(model, row, length)
    requests = request_keys(keys.from_seed(seed), 1)
    words, stop = Detokenizer(model.tokenizer), set(model.stop)
    draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for tokens in stream(model, [row], [size], requests, **draw):
        for token in tokens[0].tolist():
            if token in stop:
                yield words.flush()
                return
            if piece := words.push(token):
                yield piece
    yield words.flush()


def template_of(model: Model) -> ChatTemplate:
    """Return the chat template of the model's folder."""
    if model.home is None:
        raise ConfigError("the model comes from no folder; pass template=")
    return read_chat_template(model.home)
