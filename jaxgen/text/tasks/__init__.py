"""Tasks: functions from texts, sound and images to what is asked of them, batched by length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.text.loaded_model import open_model, template_of
    from jaxgen.text.tasks.captioning import caption, captions
    from jaxgen.text.tasks.chat import reply
    from jaxgen.text.tasks.question_answering import Answer, answer
    from jaxgen.text.tasks.scoring import classify, embed, fill_mask, score
    from jaxgen.text.tasks.seq2seq import for_languages, for_task, rewrite, rewrites, tasks_of
    from jaxgen.text.tasks.token_classification import Entity, classify_tokens
    from jaxgen.text.tasks.transcription import Segment, Speech, Transcript, listen, transcribe

__all__ = [
    "Answer",
    "Entity",
    "Segment",
    "Speech",
    "Transcript",
    "answer",
    "caption",
    "captions",
    "classify",
    "classify_tokens",
    "embed",
    "fill_mask",
    "for_languages",
    "for_task",
    "listen",
    "open_model",
    "reply",
    "rewrite",
    "rewrites",
    "score",
    "tasks_of",
    "template_of",
    "transcribe",
]

__getattr__, __dir__ = lazy.attach(__name__)
