"""Chat: messages in, the model's next turn out, as the folder's own template lays them."""

from __future__ import annotations

from collections.abc import Sequence

from jaxgen.pretrained.chat_template import ChatTemplate, Message
from jaxgen.text.batch_decoding import Completion
from jaxgen.text.batches import Progress
from jaxgen.text.loaded_model import LoadedModel
from jaxgen.text.request import Generation
from jaxgen.text.session import number_prompts, session_of


def reply(
    model: LoadedModel,
    chats: Sequence[Sequence[Message]],
    settings: Generation | None = None,
    *,
    template: ChatTemplate | None = None,
    batch: int = 8,
    progress: Progress | None = None,
    detail: bool = False,
) -> list[list[Completion]]:
    """Return the model's next turn in each chat, a list of {"role": ..., "content": ...}.

    template: None takes the folder's own. The rest is as in `Session.run`. Raises CheckpointError
    if the folder has no template or it is wrong, ConfigError for a chat it refuses or that is too
    long.
    """
    session = session_of(model)
    rows = [session.chat_ids(messages, template) for messages in chats]
    prompts = number_prompts(rows, settings or Generation())
    return session.run(prompts, batch=batch, progress=progress, detail=detail)
