"""A chat as token ids, for programs that hold a `LoadedModel`; a Session has `chat_ids`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxgen.errors import ConfigError
from jaxgen.pretrained.chat_template import ChatTemplate, Message, encode_chat, read_chat_template
from jaxgen.text.loaded_model import LoadedModel


def template_of(model: LoadedModel) -> ChatTemplate:
    """Return the chat template of the model's folder; CheckpointError if it has none."""
    if model.home is None:
        raise ConfigError("the model comes from no folder; read_chat_template(folder) reads one")
    return read_chat_template(Path(model.home))


def ids_of(model: LoadedModel, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a chat up to where the model's turn begins."""
    return encode_chat(template, model.tokenizer, messages)
