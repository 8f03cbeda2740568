"""Documents that a model can look into: indexes, search, answers with citations, memories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.knowledge.index import Built, Hit, Index, build, open_index

__all__ = ["Built", "Hit", "Index", "build", "open_index"]

__getattr__, __dir__ = lazy.attach(__name__)
