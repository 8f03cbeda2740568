"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa of a hundred languages, with their pieces."""

from __future__ import annotations

from dataclasses import replace

from jaxgen.models.families import encoders, roberta

FAMILY = replace(
    roberta.FAMILY, model_type="xlm-roberta", **encoders.classes("XLMRoberta", base="pooled")
)
