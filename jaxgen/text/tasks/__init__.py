"""Tasks: functions from texts to what is asked of them, batched by length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.text.tasks.model import Model, open_model
    from jaxgen.text.tasks.read import classify, embed, fill_mask, score
    from jaxgen.text.tasks.rewrite import rewrite

_HOME = {
    "Model": "model",
    "classify": "read",
    "embed": "read",
    "fill_mask": "read",
    "open_model": "model",
    "rewrite": "rewrite",
    "score": "read",
}

__all__ = ["Model", "classify", "embed", "fill_mask", "open_model", "rewrite", "score"]

__getattr__, __dir__ = lazy.names(__name__, _HOME)
