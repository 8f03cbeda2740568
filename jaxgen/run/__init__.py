"""A run: model, tokenizer, data, training and checkpoints of one config, in one folder.

Names are loaded on first use, so that a command line can be parsed before JAX is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.run.evaluation import evaluate
    from jaxgen.run.folder import changed_settings
    from jaxgen.run.inputs import tokenize, tokenize_part
    from jaxgen.run.settings import Settings, build_settings, read_settings
    from jaxgen.run.sizes import text_settings
    from jaxgen.run.training import resume, train

__all__ = [
    "Settings",
    "build_settings",
    "changed_settings",
    "evaluate",
    "read_settings",
    "resume",
    "text_settings",
    "tokenize",
    "tokenize_part",
    "train",
]

__getattr__, __dir__ = lazy.attach(__name__)
