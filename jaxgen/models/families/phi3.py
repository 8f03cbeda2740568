"""Phi 3, 3.5 and 4 (Microsoft 2024): Llama with fused projections and longrope."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.quirks import GATED, TIED, dropout
from jaxgen.models.families.ropes import rope
from jaxgen.models.families.rows import Row

FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    heads=decoders.heads("Phi3", "classes", "token_classes"),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=decoders.DEFAULTS
    | {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, "sliding_window": None}
    | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0},
    only={"attention_bias": (False,), "lm_head_bias": (False,), "mlp_bias": (False,)},
    ignored=frozenset({"full_attn_mod", "interpolate_factor"}),
    quirks=(
        *(TIED, GATED, ONE_WINDOW),
        # Names of longrope in the first files.
        rope(partial=True, kinds={"su": "longrope", "yarn": "longrope"}),
        dropout(("resid_pdrop", "embd_pdrop"), "attention_dropout"),
    ),
    layer_rows=(
        *(row for row in decoders.LAYER_ROWS if "layernorm" in row.theirs),
        Row("self_attn.qkv_proj.weight", ("attn/q", "attn/k", "attn/v"), "*NH,D"),
        Row("self_attn.o_proj.weight", ("attn/o",), "D,NH"),
        Row("mlp.gate_up_proj.weight", ("feed/gate", "feed/up"), "*F,D"),
        Row("mlp.down_proj.weight", ("feed/down",), "D,F"),
    ),
    **decoders.SHARED,
)
