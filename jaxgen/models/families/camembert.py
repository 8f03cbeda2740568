"""CamemBERT (Martin et al. 2020): RoBERTa of French."""

from __future__ import annotations

from dataclasses import replace

from jaxgen.models.families import encoders, roberta

FAMILY = replace(
    roberta.FAMILY, model_type="camembert", **encoders.classes("Camembert", base="pooled")
)
