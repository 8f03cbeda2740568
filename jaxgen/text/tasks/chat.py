"""Chat: messages in, the model's next turn out, as the folder's own template lays them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxgen.pretrained.chat_template import ChatTemplate, Message, images_of
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.batches import Progress
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.text.session import number_prompts, session_of


def reply(
    model: LoadedModel,
    chats: Sequence[Sequence[Message] | Mapping[str, Any]],
    settings: Generation | None = None,
    *,
    template: ChatTemplate | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch: int = 8,
    progress: Progress | None = None,
    detail: bool = False,
) -> list[list[Completion]]:
    """Return the model's next turn in each chat, a list of {"role": ..., "content": ...}.

    A content may hold images, as of `Session.chat`. A chat may be a mapping as well, of "messages"
    and its own "tools" and "chat_template_kwargs". template: None takes the folder's own. tools,
    chat_template_kwargs: as of `Session.chat`, for all chats that do not say another. The rest is
    as in `Session.run`. Raises CheckpointError if the folder has no template or it is wrong,
    ConfigError for a chat it refuses or that is too long.
    """
    session = session_of(model)
    common = {**(chat_template_kwargs or {}), **({} if tools is None else {"tools": tools})}
    rows, images = [], []
    for chat in chats:
        about = chat if isinstance(chat, Mapping) else {"messages": chat}
        own = dict(about.get("chat_template_kwargs") or {})
        own |= {"tools": about["tools"]} if about.get("tools") is not None else {}
        rows.append(session.chat_ids(about["messages"], template, **common | own))
        images.append(images_of(about["messages"]))
    prompts = [
        prompt._replace(images=own)
        for prompt, own in zip(number_prompts(rows, settings or Generation()), images, strict=True)
    ]
    return session.run(prompts, batch=batch, progress=progress, detail=detail)
