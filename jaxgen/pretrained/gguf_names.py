"""Architectures of GGUF files as data: their keys by config.json's, their tensors by our paths.

llama.cpp calls the tensors of all architectures alike, so one table of rows serves all families;
what an architecture has besides is in `ARCHITECTURES`. Sources: gguf-py's constants.py and
convert_hf_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxgen.models.families.family import Row

# Fields of a ModelConfig whose GGUF key every architecture calls alike, after its own name.
SIZES = {
    "context": "context_length",
    "layers": "block_count",
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
EPSILONS = {
    "layer": "attention.layer_norm_epsilon",
    "rms": "attention.layer_norm_rms_epsilon",
    "rms_offset": "attention.layer_norm_rms_epsilon",
}
# Further keys: as config.json calls them.
KEYS = {
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
# Keys that change no result, or that are read where they matter.
HARMLESS = frozenset(
    """
    vocab_size attention.value_length attention.causal pooling_type rope.dimension_count
    rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.attn_factor rope.scaling.finetuned rope.scaling.yarn_beta_fast
    rope.scaling.yarn_beta_slow rope.scale_linear attention.scale tensor_data_layout
    attention.layer_norm_epsilon attention.layer_norm_rms_epsilon
    """.split()
)
ROWS = (
    Row("token_embd.weight", ("embed/tokens",), "V,D"),
    Row("position_embd.weight", ("embed/positions",), "S,D"),
    Row("token_types.weight", ("embed/types",), "Y,D"),
    Row("token_embd_norm.weight", ("embed/norm/scale",), "D"),
    Row("token_embd_norm.bias", ("embed/norm/bias",), "D"),
    Row("output_norm.weight", ("final_norm/scale",), "D"),
    Row("output_norm.bias", ("final_norm/bias",), "D"),
    Row("output.weight", ("unembed/tokens",), "V,D"),
)
_MATRICES = {
    "attn_q": ("attn/q", "NH,D"),
    "attn_k": ("attn/k", "KH,D"),
    "attn_v": ("attn/v", "KH,D"),
    "attn_output": ("attn/o", "D,NH"),
    "ffn_gate": ("feed/gate", "F,D"),
    "ffn_up": ("feed/up", "F,D"),
    "ffn_down": ("feed/down", "D,F"),
}
SUBLAYERS = (
    *(Row(f"{name}.weight", (ours,), axes) for name, (ours, axes) in _MATRICES.items()),
    *(
        Row(f"{name}.bias", (f"{ours}_bias",), axes.split(",")[0])
        for name, (ours, axes) in _MATRICES.items()
    ),
    Row("attn_q_norm.weight", ("attn/q_norm/scale",), "H"),
    Row("attn_k_norm.weight", ("attn/k_norm/scale",), "H"),
)
# One matrix of queries, keys and values in place of three.
FUSED = (
    Row("attn_qkv.weight", ("attn/q", "attn/k", "attn/v"), "*NH,D"),
    Row("attn_qkv.bias", ("attn/q_bias", "attn/k_bias", "attn/v_bias"), "*NH"),
    *(row for row in SUBLAYERS if not row.theirs.startswith(("attn_q.", "attn_k.", "attn_v."))),
)


def norms(**names: str) -> tuple[Row, ...]:
    """Return the rows of a layer's norms: our name of each, by theirs."""
    return tuple(
        Row(f"{theirs}.{part}", (f"{ours}/{'scale' if part == 'weight' else part}",), "D")
        for theirs, ours in names.items()
        for part in ("weight", "bias")
    )


PRE = norms(attn_norm="attn_norm", ffn_norm="feed_norm")
BOTH = norms(
    attn_norm="attn_norm",
    post_attention_norm="attn_out_norm",
    ffn_norm="feed_norm",
    post_ffw_norm="feed_out_norm",
)
POST = norms(attn_output_norm="attn_norm", layer_output_norm="feed_norm")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a general.architecture is in transformers.

    family: its model_type. keys: further GGUF keys, by their key of config.json. settings: what
    config.json says of all of its models. rows: the norms and sublayers of a layer. turned: queries
    and keys have the two halves of a head interleaved, as the rotation of the first Llama wants it.
    offset: what is added to the scales of norms. scalars: (layers, query_pre_attn_scalar) of the
    models whose scores are not divided by the root of head_dim. tied: the output is the embedding's
    table where the file has none.
    """

    family: str
    rows: tuple[Row, ...] = PRE + SUBLAYERS
    keys: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    turned: bool = False
    offset: float = 0.0
    scalars: Mapping[int, int] | None = None
    tied: bool = True


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(family="llama", turned=True),
    "qwen2": Architecture(family="qwen2"),
    "qwen3": Architecture(family="qwen3"),
    "gemma": Architecture(family="gemma", offset=1.0),
    # The scalars of 27B models, which the files do not hold: llama-model.cpp.
    "gemma2": Architecture(family="gemma2", offset=1.0, rows=BOTH + SUBLAYERS, scalars={46: 144}),
    "gemma3": Architecture(
        family="gemma3_text",
        offset=1.0,
        rows=BOTH + SUBLAYERS,
        scalars={62: 168},
        keys={
            "rope.freq_base_swa": "rope_local_base_freq",
            "attention.sliding_window_pattern": "sliding_window_pattern",
        },
    ),
    "gpt2": Architecture(family="gpt2", rows=PRE + FUSED),
    "bert": Architecture(
        family="bert",
        rows=POST + SUBLAYERS,
        settings={"architectures": ["BertModel"], "hidden_act": "gelu"},
        tied=False,
    ),
}
