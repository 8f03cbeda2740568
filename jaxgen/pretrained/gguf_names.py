"""Architectures of GGUF files as data: what each is in transformers, its keys and its tensors.

Sources: src/models of llama.cpp, and convert_hf_to_gguf.py, which says what it writes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jaxgen.pretrained import gguf_keys
from jaxgen.pretrained import gguf_rows as rows
from jaxgen.pretrained.gguf_architecture import Architecture
from jaxgen.pretrained.gguf_keys import (
    PATTERN,
    WINDOW,
    WINDOWS,
    Json,
    query_scalar,
    same_as,
)
from jaxgen.pretrained.gguf_mixtures import GRANITE, MIXTURES, UNTIED

# Architectures of which llama.cpp expects heads that are together as wide as the model.
SQUARE = frozenset(
    """
    qwen2 qwen2moe gpt2 bert olmo2 olmoe phi3 starcoder2 stablelm gptneox phi2 falcon bloom mpt
    command-r cohere2 exaone4 modern-bert phimoe
    """.split()
)


_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
_TIED = {"tie_word_embeddings": True}
_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

# T5's distances beyond which all have one bucket are in no file. umT5's layers have tables of
# their own. llama.cpp does not scale the hidden states before a tied output, which changes no
# order of tokens; transformers does.
_T5: dict[str, Any] = {
    "tables": rows.T5_TABLES + rows.T5_BIASES,
    "rows": rows.T5_DECODER,
    "encoder_rows": rows.T5_ENCODER,
    "layer": "dec.blk.{}.",
    "encoder": "enc.blk.{}.",
    "keys": {
        "block_count": "num_layers",
        "decoder_block_count": "num_decoder_layers",
        "attention.relative_buckets_count": "relative_attention_num_buckets",
    },
    "rules": (gguf_keys.T5_FEED,),
    "absent": {"decoder_block_count": same_as("block_count")},
    "settings": {"relative_attention_max_distance": 128},
}
_UMT5: dict[str, Any] = _T5 | {
    "when": lambda meta, tensors: "enc.blk.1.attn_rel_b.weight" in tensors,
    "tables": rows.T5_TABLES,
    "rows": rows.T5_OWN_BIASES + rows.T5_DECODER,
    "encoder_rows": rows.T5_OWN_BIASES + rows.T5_ENCODER,
}


def _encoder_alone(fields: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Return the fields of an architecture of two towers for its encoder alone."""
    keys = {key: name for key, name in fields["keys"].items() if key != "decoder_block_count"}
    settings = fields["settings"] | {"architectures": [architecture]}
    return fields | {"keys": keys, "absent": {}, "settings": settings, "tied": False}


# In this order an export looks for the first that can say all of a config.
ARCHITECTURES = (
    Architecture(
        name="llama",
        family="llama",
        when=lambda meta, tensors: not meta.get("expert_count"),
        turned=True,
        flags=_BIASES,
    ),
    Architecture(name="qwen2", family="qwen2"),
    Architecture(name="qwen3", family="qwen3"),
    Architecture(name="gemma", family="gemma", offset=1.0, settings=_TIED),
    Architecture(
        name="gemma2",
        family="gemma2",
        offset=1.0,
        rows=rows.BOTH + rows.SUBLAYERS,
        keys=_CAPS,
        rules=(WINDOWS, query_scalar(46, 144)),
        settings=_TIED,
        absent={WINDOW: 4096, PATTERN: 2}
        | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    Architecture(
        name="gemma3",
        family="gemma3_text",
        offset=1.0,
        rows=rows.BOTH + rows.SUBLAYERS,
        keys={
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        rules=(WINDOWS, query_scalar(62, 168)),
        absent={WINDOW: 0, PATTERN: 6}
        | {"rope.freq_base_swa": 10000.0, "final_logit_softcapping": 0.0},
    ),
    # Of these llama.cpp has the models of Google alone: it knows by itself which layers share keys,
    # the rank of the path beside attention, and that no coefficient of streams is clipped.
    Architecture(
        name="gemma3n",
        family="gemma3n_text",
        written=False,
        tables=rows.STREAM_TABLES,
        rows=rows.BOTH + rows.SUBLAYERS + rows.STREAMS,
        keys={
            "feed_forward_length": "intermediate_size",
            "rope.freq_base_swa": "rope_local_base_freq",
            "final_logit_softcapping": "final_logit_softcapping",
            "altup.num_inputs": "altup_num_inputs",
            "embedding_length_per_layer_input": "hidden_size_per_layer_input",
            "attention.shared_kv_layers": "num_kv_shared_layers",
        },
        rules=(WINDOWS, gguf_keys.SPARSITY),
        absent={PATTERN: 5, "rope.freq_base_swa": 10000.0, "final_logit_softcapping": 30.0},
        only={"altup.active_idx": (0, 0)},
        settings={"altup_coef_clip": 120.0},
        counted={
            "vocab_size_per_layer_input": "per_layer_token_embd.weight",
            "laurel_rank": "blk.0.laurel_l.weight",
        },
        unread=tuple(f"blk.*.attn_{x}.weight" for x in ("k", "v", "k_norm")),
    ),
    Architecture(name="gpt2", family="gpt2", rows=rows.PRE + rows.FUSED),
    Architecture(
        name="bert",
        family="bert",
        rows=rows.POST + rows.SUBLAYERS,
        settings={"architectures": ["BertModel"], "hidden_act": "gelu"},
        only={"attention.causal": (True, False)},
        tied=False,
    ),
    Architecture(
        name="modern-bert",
        family="modernbert",
        rows=rows.PRE + rows.PHI3,
        keys={"rope.freq_base": "global_rope_theta", "rope.freq_base_swa": "local_rope_theta"},
        rules=(gguf_keys.BOTH_SIDES, gguf_keys.HIDDEN_ACT),
        settings={"architectures": ["ModernBertModel"]},
        absent={WINDOW: 0, PATTERN: 3, "hidden_act": "gelu"}
        | {"rope.freq_base_swa": same_as("rope.freq_base")},
        only={"attention.causal": (True, False)},
        tied=False,
    ),
    Architecture(
        name="olmo2",
        family="olmo2",
        when=lambda meta, tensors: not meta.get(WINDOW),
        rows=rows.OUT + rows.OVER_HEADS,
        settings=UNTIED,
    ),
    Architecture(
        name="olmo2",
        family="olmo3",
        when=lambda meta, tensors: bool(meta.get(WINDOW)),
        rows=rows.OUT + rows.OVER_HEADS,
        rules=(WINDOWS,),
        settings=UNTIED,
        absent={PATTERN: 4},
        only={"rope.freq_base": (10000.0, 500000.0)},  # of layers with a window, in transformers
    ),
    Architecture(
        name="phi3",
        family="phi3",
        rows=rows.PRE + rows.PHI3,
        keys={WINDOW: "sliding_window"},
        absent={WINDOW: 0},
    ),
    Architecture(name="granite", family="granite", flags=_BIASES, **GRANITE),
    # Every fourth layer does not turn, which files do not say.
    Architecture(name="smollm3", family="smollm3", turned=True),
    # llama.cpp has no windows there.
    Architecture(
        name="starcoder2",
        family="starcoder2",
        settings={"sliding_window": None, "hidden_act": "gelu_new"},
    ),
    Architecture(
        name="stablelm",
        family="stablelm",
        rules=(gguf_keys.ONE_NORM,),
        settings=UNTIED,
        absent={"use_parallel_residual": None},
        flags={"use_qkv_bias": "blk.0.attn_q.bias"},
    ),
    Architecture(
        name="gptneox",
        family="gpt_neox",
        rows=rows.PRE + rows.FUSED,
        keys={
            "rope.freq_base": "rotary_emb_base",
            "use_parallel_residual": "use_parallel_residual",
        },
        settings=UNTIED | {"hidden_act": "gelu"},
        share="rotary_pct",
    ),
    Architecture(
        name="phi2",
        family="phi",
        settings=UNTIED | {"hidden_act": "gelu_new", "qk_layernorm": False},
    ),
    Architecture(
        name="falcon",
        family="falcon",
        rows=rows.FALCON,
        rules=(gguf_keys.FALCON,),
        settings={"alibi": False, "bias": False, "parallel_attn": True, "activation": "gelu"},
    ),
    Architecture(
        name="bloom", family="bloom", rows=rows.PRE + rows.FUSED, rules=(gguf_keys.DERIVED,)
    ),
    Architecture(
        name="mpt",
        family="mpt",
        rows=rows.PRE + rows.FUSED,
        rules=(gguf_keys.DERIVED,),
        only={"attention.max_alibi_bias": (0.0, 8.0)},
    ),
    Architecture(
        name="command-r",
        family="cohere",
        keys={"logit_scale": "logit_scale"},
        absent={"logit_scale": 1.0},
        settings=_TIED | {"use_qk_norm": False},
    ),
    Architecture(
        name="cohere2",
        family="cohere2",
        keys={"logit_scale": "logit_scale"},
        rules=(WINDOWS,),
        absent={PATTERN: 4},
        settings=_TIED,
    ),
    Architecture(
        name="exaone4",
        family="exaone4",
        rows=rows.OUT + rows.SUBLAYERS,
        rules=(gguf_keys.EXAONE,),
        absent={WINDOW: 4096, PATTERN: 4},
    ),
    Architecture(
        name="seed_oss",
        family="seed_oss",
        rows=rows.AFTER + rows.SUBLAYERS,
        settings={"attention_out_bias": False, "mlp_bias": False},
        flags={"attention_bias": "blk.0.attn_q.bias"},
    ),
    Architecture(name="t5", family="umt5", **_UMT5),
    Architecture(name="t5", family="t5", **_T5),
    Architecture(name="t5encoder", family="umt5", **_encoder_alone(_UMT5, "UMT5EncoderModel")),
    Architecture(name="t5encoder", family="t5", **_encoder_alone(_T5, "T5EncoderModel")),
    *MIXTURES,
)
NAMES = tuple(dict.fromkeys(one.name for one in ARCHITECTURES))


def architecture_named(name: str, meta: Json, tensors: Collection[str]) -> Architecture:
    """Return the architecture of a name in NAMES that a file of these keys and tensors is of."""
    return next(one for one in ARCHITECTURES if one.name == name and one.when(meta, tensors))
