"""Falcon (Almazrouei et al. 2023): heads that share keys; rotary positions, or ALiBi."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import bloom, decoders, gpt_neox
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import FEED, Theirs, one_of
from jaxgen.models.families.ropes import ROPE
from jaxgen.models.families.rows import norm

BLOCK = {"alibi": False, "multi_query": True, "num_kv_heads": None, "parallel_attn": True}
BLOCK |= {"new_decoder_architecture": False, "num_ln_in_parallel_attn": None}
BLOCKS = ("none", "one_norm", "two_norms")  # by the number of norms, if sublayers are parallel


def _read(theirs: Theirs) -> dict[str, Any]:
    alibi, one, heads, side, new, norms = (theirs[key] for key in BLOCK)
    norms = norms or (2 if new else 1)
    if norms not in (1, 2) or (norms == 2 and not new) or (new and not side):
        keys = ", ".join(f"{key}={theirs[key]!r:.40}" for key in BLOCK)
        raise CheckpointError(f"{keys}: no block of Falcon is so")
    heads = heads if new else 1 if one else theirs["num_attention_heads"]
    order = {"positions": "alibi", "scores.alibi": "scaled"} if alibi else ROPE.read(theirs)
    return order | {"kv_heads": heads, "parallel": BLOCKS[int(norms) * bool(side)]}


def _write(config: ModelConfig) -> dict[str, Any]:
    keys, norms, alibi = config.K, BLOCKS.index(config.parallel), config.positions == "alibi"
    new = norms == 2 or keys not in (1, config.heads)
    block = (alibi, keys == 1, keys, norms > 0, new, norms or 1)
    return dict(zip(BLOCK, block, strict=True)) | ROPE.write(config)


FAMILY = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    sizes=gpt_neox.SIZES | {"norm_epsilon": "layer_norm_epsilon", "d_ff": "ffn_hidden_size"},
    choices=gpt_neox.FAMILY.choices,
    defaults={**gpt_neox.FAMILY.defaults, **BLOCK, "bias": False, "ffn_hidden_size": None}
    | {"activation": "gelu", "tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
    aliases={"n_embed": "hidden_size"},
    ignored=frozenset({"ff_factor"}),
    quirks=(
        *(*gpt_neox.QUIRKS, one_of("biases", "bias", {False: "norms", True: "all"})),
        *(one_of("feed", "activation", FEED), Quirk((*BLOCK, *ROPE.keys), _read, _write)),
    ),
    layer_rows=(
        *norm("input_layernorm", "attn_norm", when=("parallel", "none", "one_norm")),
        *norm("post_attention_layernorm", "feed_norm", when=("parallel", "none")),
        *norm("ln_attn", "attn_norm", when=("parallel", "two_norms")),
        *norm("ln_mlp", "feed_norm", when=("parallel", "two_norms")),
        *bloom.SUBLAYERS,
    ),
    heads=decoders.heads("Falcon", *decoders.HEADS),
    **bloom.SHARED,
)
