"""Documents that a model can look into: indexes, search, answers with citations, memories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.knowledge.answer import Answer, Citation, ask, calibrate, grounded, is_verified
    from jaxgen.knowledge.index import Built, Hit, Index, build, open_index
    from jaxgen.knowledge.memory import Memory, build_memory, open_memory
    from jaxgen.knowledge.steps import (
        cache_step,
        document_cache,
        documents_step,
        knn_step,
        state_cache,
    )

__all__ = [
    "Answer",
    "Built",
    "Citation",
    "Hit",
    "Index",
    "Memory",
    "ask",
    "build",
    "build_memory",
    "cache_step",
    "calibrate",
    "document_cache",
    "documents_step",
    "grounded",
    "is_verified",
    "knn_step",
    "open_index",
    "open_memory",
    "state_cache",
]

__getattr__, __dir__ = lazy.attach(__name__)
