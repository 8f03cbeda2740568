"""Gemma 4 that reads pixels and sounds as it does tokens (Google 2026), text only."""

from __future__ import annotations

from jaxgen.models.families import gemma4

FAMILY = gemma4.UNIFIED
