"""DeBERTa, version 2 and 3 (He et al. 2021): positions are scores of their own, by distance."""

from __future__ import annotations

from jaxgen.models.families import bert, disentangled, encoders
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import FEED, of_heads, one_of, same
from jaxgen.models.families.rows import queries

# Their table of positions, which nothing reads, and the head that training used.
IGNORED = ("deberta.embeddings.position_*", "mask_predictions.*", "pooler.*")
# Names that a head of version 3 has, which computes the same.
LATER = {
    f"lm_predictions.lm_head.{layer}.{part}": f"{bert.MLM}.transform.{layer}.{part}"
    for layer in ("dense", "LayerNorm")
    for part in ("weight", "bias")
} | {"lm_predictions.lm_head.bias": f"{bert.MLM}.bias"}

FAMILY = Family(
    model_type="deberta-v2",
    layer="deberta.encoder.layer.{}.",
    sizes=encoders.SIZES | encoders.CONTEXT,
    choices=encoders.CHOICES | {"positions": "disentangled"},
    defaults=encoders.DEFAULTS
    | {"type_vocab_size": 0, "layer_norm_eps": 1e-7, "relative_attention": False}
    | {"position_biased_input": True, "position_buckets": -1, "max_relative_positions": -1}
    | {"pos_att_type": None, "share_att_key": False, "norm_rel_ebd": "none"}
    | {"pooler_hidden_act": "gelu"},
    only={
        "relative_attention": (True,),
        "position_biased_input": (False,),
        "conv_kernel_size": (0, None),
    },
    ignored=encoders.IGNORED
    | frozenset("conv_act conv_groups legacy pooler_dropout cls_dropout".split()),
    quirks=(
        *encoders.QUIRKS,
        *disentangled.QUIRKS,
        *of_heads(
            ("classes",),
            one_of("head_layer.activation", "pooler_hidden_act", FEED | {"tanh": "tanh"}),
        ),
        same(("hidden_size", "embedding_size", "pooler_hidden_size"), "d_model"),
    ),
    layer_rows=(
        *queries("attention.self.{}_proj", names=encoders.NAMES),
        *disentangled.LAYER_ROWS,
        *encoders.OUTPUT_ROWS,
        *encoders.FEED_ROWS,
    ),
    **encoders.classes("DebertaV2"),
    **encoders.parts(
        "deberta",
        *(bert.MASKED, ("pooler.dense", "classifier")),
        more=disentangled.ROWS,
        copies=LATER,
        ignored=IGNORED,
    ),
)
