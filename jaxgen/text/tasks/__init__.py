"""Tasks: functions from texts to what is asked of them, batched by length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.text.tasks.answers import Answer, answer
    from jaxgen.text.tasks.model import Model, open_model
    from jaxgen.text.tasks.read import classify, embed, fill_mask, score
    from jaxgen.text.tasks.rewriting import rewrite, rewrites
    from jaxgen.text.tasks.turns import chat, reply, template_of
    from jaxgen.text.tasks.writing import write

_HOME = {
    "Answer": "answers",
    "Model": "model",
    "answer": "answers",
    "chat": "turns",
    "classify": "read",
    "embed": "read",
    "fill_mask": "read",
    "open_model": "model",
    "reply": "turns",
    "rewrite": "rewriting",
    "rewrites": "rewriting",
    "score": "read",
    "template_of": "turns",
    "write": "writing",
}

__all__ = [
    "Answer",
    "Model",
    "answer",
    "chat",
    "classify",
    "embed",
    "fill_mask",
    "open_model",
    "reply",
    "rewrite",
    "rewrites",
    "score",
    "template_of",
    "write",
]

__getattr__, __dir__ = lazy.names(__name__, _HOME)
