"""A chat as token ids, for programs that hold a `LoadedModel`; a Session has `chat_ids`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxgen.pretrained.chat_template import ChatTemplate, Message, encode_chat
from jaxgen.text.loaded_model import LoadedModel


def ids_of(model: LoadedModel, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a chat up to where the model's turn begins."""
    return encode_chat(template, model.tokenizer, messages)
