"""CamemBERT (Martin et al. 2020): RoBERTa of French."""

from __future__ import annotations

from dataclasses import replace

from jaxgen.models.families import roberta

FAMILY = replace(roberta.FAMILY, model_type="camembert", **roberta.named("Camembert"))
