"""MPT (MosaicML 2023): ALiBi, and no biases at all."""

from __future__ import annotations

from jaxgen.models.families import bloom, decoders, gpt_neox
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import TIED, inside
from jaxgen.models.families.rows import Row

# Of ALiBi's slopes transformers takes those of 8 whatever is told.
ONLY = {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention", "clip_qkv": None}
ONLY |= {"prefix_lm": False, "qk_ln": False, "rope": False, "sliding_window_size": -1}
ATTENTION = inside("attn_config", {"scores.multiplier": "softmax_scale"}, ONLY)

FAMILY = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    prefix="transformer.",
    layer="transformer.blocks.{}.",
    sizes=bloom.SIZES
    | {"context": "max_seq_len", "layers": "n_layers", "d_model": "d_model", "heads": "n_heads"},
    choices={"norm": "layer", "positions": "alibi", "feed": "gelu", "biases": "none"},
    defaults={"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "max_seq_len": 2048}
    | {"attn_config": None, "tie_word_embeddings": True},
    aliases={"num_attention_heads": "n_heads", "hidden_size": "d_model"}
    | {"num_hidden_layers": "n_layers"},
    only={"no_bias": (True,), "logit_scale": (None,), "expansion_ratio": (4,)},
    ignored=frozenset(
        "embedding_fraction emb_pdrop init_config init_device learned_pos_emb norm_type "
        "resid_pdrop tokenizer_name verbose".split()
    ),
    quirks=(TIED, ATTENTION),
    rows=(
        Row("transformer.wte.weight", ("embed/tokens",), "V,D"),
        Row("transformer.norm_f.weight", ("final_norm/scale",), "D"),
        Row("lm_head.weight", ("unembed/tokens",), "V,D"),
    ),
    layer_rows=(
        Row("norm_1.weight", ("attn_norm/scale",), "D"),
        Row("attn.Wqkv.weight", gpt_neox.QKV, "*NH,D"),
        Row("attn.out_proj.weight", ("attn/o",), "D,NH"),
        Row("norm_2.weight", ("feed_norm/scale",), "D"),
        Row("ffn.up_proj.weight", ("feed/up",), "F,D"),
        Row("ffn.down_proj.weight", ("feed/down",), "D,F"),
    ),
    heads=decoders.heads("Mpt", *decoders.HEADS),
    head_rows=decoders.CLASSIFIER,
    copies={"lm_head.weight": "transformer.wte.weight"},
)
