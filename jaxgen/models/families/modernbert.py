"""ModernBERT (Warner et al. 2024): an encoder of windows and of the whole text, with two ropes."""

from __future__ import annotations

from jaxgen.models.families import encoders
from jaxgen.models.families import modernbert_kin as kin
from jaxgen.models.families.family import Family
from jaxgen.models.families.layer_kinds import layer_types
from jaxgen.models.families.quirks import (
    token_classes,
)
from jaxgen.models.families.rows import Row, linear, norm

LAYERS = layer_types(kin.KINDS, (kin.EVERY,), half=(kin.WINDOW, 1))
HEAD = ("head.dense", "head.norm")
CLASSES = (*encoders.normed(*HEAD), *token_classes("classifier"))

FAMILY = Family(
    model_type="modernbert",
    prefix="model.",
    layer="model.layers.{}.",
    sizes={ours: key for ours, key in encoders.SIZES.items() if ours != "embed.types"}
    | {"norm_epsilon": "norm_eps", "context": "max_position_embeddings"},
    choices={"topology": "encoder", "norm": "layer", "positions": "rope", "embed.norm": "first"},
    defaults=dict.fromkeys((*kin.PARTS, "classifier_bias"), False)
    | dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), 0.0)
    | {"hidden_activation": "gelu", "classifier_activation": "gelu", "classifier_pooling": "cls"}
    | {"initializer_range": 0.02, "norm_eps": 1e-5, "decoder_bias": True, kin.EVERY: 3}
    | {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, kin.WINDOW: 128}
    | {"max_position_embeddings": 8192, "tie_word_embeddings": True},
    only={"rope_scaling": (None,), "position_embedding_type": ("absolute", "sans_pos", None)},
    ignored=frozenset("classifier_dropout initializer_cutoff_factor layer_norm_eps".split())
    | frozenset("deterministic_flash_attn reference_compile repad_logits_with_grad".split())
    | frozenset({"sparse_prediction", "sparse_pred_ignore_index"}),
    quirks=(LAYERS, *kin.QUIRKS),
    rows=(
        Row("model.embeddings.tok_embeddings.weight", ("embed/tokens",), "V,D"),
        *norm("model.embeddings.norm", "embed/norm"),
        *norm("model.final_norm", "final_norm"),
    ),
    layer_rows=(*linear("attn.Wqkv", ("attn/q", "attn/k", "attn/v"), "*NH,D"), *kin.LAYER_ROWS),
    head_rows={
        "mlm": encoders.mlm(*HEAD, "decoder"),
        **dict.fromkeys(("classes", "token_classes", "spans"), CLASSES),
    },
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    **encoders.classes("ModernBert"),
)
