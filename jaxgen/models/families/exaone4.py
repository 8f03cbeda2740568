"""EXAONE 4 (LG AI Research 2025): norms of outputs alone; layers without a window don't turn."""

from __future__ import annotations

from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import all_full, every_nth, layer_types
from jaxgen.models.families.quirks import GATED, TIED
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import norm

FAMILY = Family(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    heads=decoders.heads("Exaone4", *decoders.HEADS),
    moved={"spans": "transformer."},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES | {"norm_at": "out", "qk_norm": "head"},
    defaults=decoders.DEFAULTS
    | {"num_key_value_heads": 32, "rms_norm_eps": 1e-5}
    | {"sliding_window": 4096, "sliding_window_pattern": 4},
    quirks=(
        *(TIED, GATED, ROPE),
        layer_types(
            lambda theirs: every_nth(theirs) if theirs["sliding_window"] else all_full(theirs),
            ("sliding_window_pattern",),
            unturned=lambda theirs: theirs["sliding_window"] is not None,
        ),
    ),
    layer_rows=(
        *norm("post_attention_layernorm", "attn_out_norm"),
        *norm("post_feedforward_layernorm", "feed_out_norm"),
        *decoders.SUBLAYERS,
    ),
    **decoders.SHARED,
)
