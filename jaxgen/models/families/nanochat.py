"""nanochat (Karpathy 2025): norms without scales, squared ReLU, capped logits."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, TIED, one_of
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import Row

CAP = {"logit_cap": "final_logit_softcapping"}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": decoders.SIZES | CAP}
# Queries and keys, normalised after they turned, turn the other way round.
CHOICES = {"norm": "rms_unit", "positions": "rope", "rope.pairs": "halves_back", "qk_norm": "unit"}

FAMILY = Family(
    model_type="nanochat",
    architecture="NanoChatForCausalLM",
    heads=decoders.heads("NanoChat"),
    choices=CHOICES | {"embed.norm": "norm"},
    defaults=decoders.DEFAULTS
    | {"hidden_act": "relu2", "final_logit_softcapping": 15.0, "attention_bias": False},
    quirks=(
        *(TIED, ROPE, one_of("feed", "hidden_act", FEED)),
        one_of("biases", "attention_bias", {False: "none", True: "attention"}),
    ),
    layer_rows=(
        *(row for row in decoders.SUBLAYERS if row.theirs.startswith("self_attn.")),
        Row("mlp.fc1.weight", ("feed/up",), "F,D"),
        Row("mlp.fc2.weight", ("feed/down",), "D,F"),
    ),
    **SHARED,
)
