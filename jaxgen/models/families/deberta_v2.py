"""DeBERTa, version 2 and 3 (He et al. 2021): positions are scores of their own, by distance."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import bert
from jaxgen.models.families.family import Family, Quirk, Row, linear, norm
from jaxgen.models.families.gpt2 import FEED
from jaxgen.models.families.quirks import SPANS, one_of, same, token_classes

TERMS = {"c2p": "query", "p2c": "key"}
_KEYS = ("pos_att_type", "position_buckets", "max_relative_positions")
_ACTIVATIONS = FEED | {"tanh": "tanh"}


def _read(theirs) -> dict[str, Any]:
    told, buckets, longest = (theirs[key] for key in _KEYS)
    told = told.lower().split("|") if isinstance(told, str) else told or []
    names = {name.strip() for name in told}
    if not names or not names <= set(TERMS):
        raise CheckpointError(f"pos_att_type={theirs['pos_att_type']!r:.60}: known are c2p and p2c")
    return {
        "disentangled.terms": [ours for name, ours in TERMS.items() if name in names],
        "disentangled.buckets": buckets if buckets > 0 else None,
        "disentangled.distance": longest if longest > 0 else theirs["max_position_embeddings"],
    }


def _read_pooler(theirs) -> dict[str, Any]:
    word = theirs["pooler_hidden_act"]
    if not (theirs.get("architectures") or [""])[0].endswith("SequenceClassification"):
        return {}
    if word not in _ACTIVATIONS:
        raise CheckpointError(f"pooler_hidden_act={word!r:.60} is not known here")
    return {"head_layer.activation": _ACTIVATIONS[word]}


def _write_pooler(config: ModelConfig) -> dict[str, Any]:
    names = {ours: name for name, ours in reversed(_ACTIVATIONS.items())}
    return {
        "pooler_hidden_act": names[config.head_activation if config.head == "classes" else "gelu"]
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    own = config.disentangled
    names = [name for name, ours in TERMS.items() if ours in own.terms]
    return dict(zip(_KEYS, ("|".join(names), own.buckets or -1, own.distance), strict=True))


MLM = "cls.predictions"
LATER = "lm_predictions.lm_head"  # names that a head of version 3 has, which computes the same
LAST = {"dense": "transform.dense", "LayerNorm": "transform.LayerNorm"}
LAST_COPIES = {
    f"{LATER}.{name}.{part}": f"{MLM}.{ours}.{part}"
    for name, ours in LAST.items()
    for part in ("weight", "bias")
}

FAMILY = Family(
    model_type="deberta-v2",
    architecture="DebertaV2ForMaskedLM",
    heads=bert.heads("DebertaV2", base="none"),
    prefix="deberta.",
    layer="deberta.encoder.layer.{}.",
    sizes=bert.SIZES | {"context": "max_position_embeddings"},
    choices=bert.CHOICES | {"positions": "disentangled"},
    defaults=bert.DEFAULTS
    | {"type_vocab_size": 0, "layer_norm_eps": 1e-7, "relative_attention": False}
    | {"position_biased_input": True, "position_buckets": -1, "max_relative_positions": -1}
    | {"pos_att_type": None, "share_att_key": False, "norm_rel_ebd": "none"}
    | {"pooler_hidden_act": "gelu"},
    only={
        "relative_attention": (True,),
        "position_biased_input": (False,),
        "conv_kernel_size": (0, None),
    },
    ignored=bert.IGNORED
    | frozenset("conv_act conv_groups legacy pooler_dropout cls_dropout".split()),
    quirks=(
        bert.OUTPUT,
        Quirk(_KEYS, _read, _write),
        one_of("disentangled.keys", "share_att_key", {True: "shared", False: "own"}),
        one_of("disentangled.norm", "norm_rel_ebd", {"layer_norm": "norm", "none": "none"}),
        one_of("feed", "hidden_act", FEED),
        Quirk(("pooler_hidden_act",), _read_pooler, _write_pooler),
        same(("hidden_size", "embedding_size", "pooler_hidden_size"), "d_model"),
        bert.DROPOUT,
    ),
    rows=(
        *bert.rows("deberta."),
        Row("deberta.encoder.rel_embeddings.weight", ("relative/vectors",), "R,D"),
        *norm("deberta.encoder.LayerNorm", "relative/norm"),
    ),
    layer_rows=(
        *linear("attention.self.query_proj", "attn/q", "NH,D"),
        *linear("attention.self.key_proj", "attn/k", "NH,D"),
        *linear("attention.self.value_proj", "attn/v", "NH,D"),
        *linear("attention.self.pos_query_proj", "attn/position_q", "NH,D"),
        *linear("attention.self.pos_key_proj", "attn/position_k", "NH,D"),
        *bert.OUTPUT_ROWS,
        *bert.FEED_ROWS,
    ),
    head_rows={
        "mlm": bert.mlm(MLM),
        "classes": bert.dense("pooler.dense", "classifier"),
        "token_classes": token_classes("classifier"),
        "spans": SPANS,
    },
    copies=LAST_COPIES
    | {f"{LATER}.bias": f"{MLM}.bias", f"{MLM}.decoder.bias": f"{MLM}.bias"}
    | {f"{MLM}.decoder.weight": "deberta.embeddings.word_embeddings.weight"},
    # Their table of positions, which nothing reads, and the head that training used.
    ignored_tensors=("deberta.embeddings.position_*", "mask_predictions.*", "pooler.*"),
)
