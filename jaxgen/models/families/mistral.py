"""Mistral (Jiang et al. 2023): Llama with a sliding window."""

from __future__ import annotations

from jaxgen.models.families import llama
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import GATED, ONE_WINDOW, ROPE, TIED

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    heads={
        "MistralForSequenceClassification": "classes",
        "MistralForTokenClassification": "token_classes",
        "MistralForQuestionAnswering": "spans",
        "MistralModel": "none",
    },
    head_rows=llama.SCORE,
    choices=llama.CHOICES,
    defaults=llama.DEFAULTS | {"sliding_window": 4096, "num_key_value_heads": 8},
    quirks=(TIED, GATED, ROPE, ONE_WINDOW),
    layer_rows=llama.LAYER_ROWS,
    **llama.SHARED,
)
