"""Objectives: pure functions from token ids and random keys to what a model reads and predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgen import lazy

if TYPE_CHECKING:
    from jaxgen.data.objectives.alphabet import Alphabet
    from jaxgen.data.objectives.make import make_objective
    from jaxgen.data.objectives.settings import ObjectiveSettings

__all__ = ["Alphabet", "ObjectiveSettings", "make_objective"]

__getattr__, __dir__ = lazy.attach(__name__)
