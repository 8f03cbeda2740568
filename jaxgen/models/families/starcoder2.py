"""StarCoder 2 (Lozhkov et al. 2024): rotary positions, layer norms and biases everywhere."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.quirks import FEED, TIED, one_of
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import feed

SIZES = decoders.SIZES | {"norm_epsilon": "norm_epsilon"}
SHARED: dict[str, Any] = decoders.SHARED | {"sizes": SIZES}

FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    heads=decoders.heads("Starcoder2", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    choices={"norm": "layer", "positions": "rope"},
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5}
    | {"initializer_range": 0.018042, "sliding_window": None, "use_bias": True}
    | {"tie_word_embeddings": True},
    ignored=frozenset(
        "activation_function attention_softmax_in_fp32 embedding_dropout layer_norm_epsilon "
        "mlp_type norm_type residual_dropout scale_attention_softmax_in_fp32 "
        "scale_attn_weights".split()
    ),
    quirks=(
        *(TIED, ROPE, ONE_WINDOW),
        one_of("feed", "hidden_act", FEED),
        one_of("biases", "use_bias", {True: "all", False: "norms"}),
    ),
    layer_rows=(
        *(row for row in decoders.LAYER_ROWS if "mlp" not in row.theirs),
        *feed("mlp.c_fc", "mlp.c_proj"),
    ),
    **SHARED,
)
