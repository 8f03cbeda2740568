"""DeBERTa, version 2 and 3 (He et al. 2021): positions are scores of their own, by distance."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import bert, encoders
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import of_heads, one_of, same
from jaxgen.models.families.rows import Row, linear, norm

TERMS = {"c2p": "query", "p2c": "key"}
KEYS = ("pos_att_type", "position_buckets", "max_relative_positions")


def _read(theirs) -> dict[str, Any]:
    told, buckets, longest = (theirs[key] for key in KEYS)
    told = told.lower().split("|") if isinstance(told, str) else told or []
    names = {name.strip() for name in told}
    if not names or not names <= set(TERMS):
        raise CheckpointError(f"pos_att_type={theirs['pos_att_type']!r:.60}: known are c2p and p2c")
    return {
        "disentangled.terms": [ours for name, ours in TERMS.items() if name in names],
        "disentangled.buckets": buckets if buckets > 0 else None,
        "disentangled.distance": longest if longest > 0 else theirs["max_position_embeddings"],
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    own = config.disentangled
    names = [name for name, ours in TERMS.items() if ours in own.terms]
    return dict(zip(KEYS, ("|".join(names), own.buckets or -1, own.distance), strict=True))


VECTORS = (
    Row("deberta.encoder.rel_embeddings.weight", ("relative/vectors",), "R,D"),
    *norm("deberta.encoder.LayerNorm", "relative/norm"),
)
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
        Quirk(KEYS, _read, _write),
        one_of("disentangled.keys", "share_att_key", {True: "shared", False: "own"}),
        one_of("disentangled.norm", "norm_rel_ebd", {"layer_norm": "norm", "none": "none"}),
        *of_heads(
            ("classes",),
            one_of("head_layer.activation", "pooler_hidden_act", FEED | {"tanh": "tanh"}),
        ),
        same(("hidden_size", "embedding_size", "pooler_hidden_size"), "d_model"),
    ),
    layer_rows=(
        *encoders.queries("attention.self.{}_proj"),
        *linear("attention.self.pos_query_proj", "attn/position_q", "NH,D"),
        *linear("attention.self.pos_key_proj", "attn/position_k", "NH,D"),
        *encoders.OUTPUT_ROWS,
        *encoders.FEED_ROWS,
    ),
    **encoders.classes("DebertaV2"),
    **encoders.parts(
        "deberta",
        *(bert.MASKED, ("pooler.dense", "classifier")),
        more=VECTORS,
        copies=LATER,
        ignored=IGNORED,
    ),
)
