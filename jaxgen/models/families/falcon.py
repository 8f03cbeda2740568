"""Falcon (Almazrouei et al. 2023): heads that share keys; rotary positions, or ALiBi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import bloom, gpt2, gpt_neox, llama
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import TIED, dropout, one_of
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import linear, norm

NEW, ONE, SIDE, NORMS = (
    *("new_decoder_architecture", "multi_query", "parallel_attn", "num_ln_in_parallel_attn"),
)


def _read(theirs: Mapping[str, Any]) -> dict[str, Any]:
    new, side, norms, heads = (theirs[key] for key in (NEW, SIDE, NORMS, "num_kv_heads"))
    norms = norms or (2 if new else 1)
    if norms not in (1, 2) or (norms == 2 and not new) or (new and not side):
        raise CheckpointError(f"{NORMS}={norms!r:.40} with {NEW}={new} and {SIDE}={side}: no block")
    block = ("one_norm" if norms == 1 else "two_norms") if side else "none"
    heads = heads if new else 1 if theirs[ONE] else theirs["num_attention_heads"]
    order = {"positions": "rope"} | ROPE.read(theirs)
    if theirs["alibi"]:
        order = {"positions": "alibi", "scores.alibi": "scaled"}
    return {"kv_heads": heads, "parallel": block, **order}


def _write(config: ModelConfig) -> dict[str, Any]:
    block, keys, alibi = config.parallel, config.K, config.positions == "alibi"
    new = block == "two_norms" or keys not in (1, config.heads)
    told = {NEW: new, ONE: keys == 1, SIDE: block != "none", NORMS: 1 + (block == "two_norms")}
    return told | {"num_kv_heads": keys, "alibi": alibi} | ROPE.write(config)


FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    prefix="transformer.",
    layer="transformer.h.{}.",
    sizes=gpt_neox.SIZES | {"norm_epsilon": "layer_norm_epsilon", "d_ff": "ffn_hidden_size"},
    choices={"norm": "layer"},
    defaults={**gpt_neox.FAMILY.defaults, "alibi": False, "bias": False, "activation": "gelu"}
    | {NEW: False, ONE: True, SIDE: True, NORMS: None, "tie_word_embeddings": True}
    | {"layer_norm_epsilon": 1e-5, "ffn_hidden_size": None, "num_kv_heads": None}
    | {"max_position_embeddings": 2048},
    aliases={"n_embed": "hidden_size"},
    only={"apply_residual_connection_post_layernorm": (False,)},
    ignored=frozenset({"ff_factor"}),
    quirks=(
        *(TIED, one_of("feed", "activation", gpt2.FEED)),
        one_of("biases", "bias", {False: "norms", True: "all"}),
        dropout(("hidden_dropout",), "attention_dropout"),
        Quirk((NEW, ONE, SIDE, NORMS, "num_kv_heads", "alibi", *ROPE.keys), _read, _write),
    ),
    rows=bloom.ROWS,
    layer_rows=(
        *norm("input_layernorm", "attn_norm", when=("parallel", "none", "one_norm")),
        *norm("post_attention_layernorm", "feed_norm", when=("parallel", "none")),
        *norm("ln_attn", "attn_norm", when=("parallel", "two_norms")),
        *norm("ln_mlp", "feed_norm", when=("parallel", "two_norms")),
        *linear("self_attention.query_key_value", gpt_neox.QKV, "K*GH,D"),
        *linear("self_attention.dense", "attn/o", "D,NH"),
        *gpt_neox.MLP,
    ),
    heads=llama.heads("Falcon", *llama.HEADS),
    head_rows=bloom.FAMILY.head_rows,
    copies=bloom.FAMILY.copies,
)
