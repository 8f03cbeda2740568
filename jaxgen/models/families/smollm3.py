"""SmolLM3 (Hugging Face 2025): Llama of which every fourth layer has no rotation."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import TURNS
from jaxgen.models.families.quirks import ATTENTION_AND_FEED, GATED, TIED
from jaxgen.models.families.ropes import ROPE

FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    heads=decoders.heads("SmolLM3", *decoders.HEADS),
    moved={"spans": "transformer."},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True}
    | {"attention_bias": False, "mlp_bias": False}
    | {"use_sliding_window": False, "sliding_window": None, "no_rope_layer_interval": 4},
    ignored=frozenset({"max_window_layers"}),
    quirks=(TIED, GATED, ROPE, ATTENTION_AND_FEED, TURNS),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
