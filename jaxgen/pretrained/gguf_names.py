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
    "experts.number": "expert_count",
    "experts.active": "expert_used_count",
    "experts.d_ff": "expert_feed_forward_length",
    "experts.shared": "expert_shared_feed_forward_length",
}
# Those that are the rows of a tensor.
TABLES = {"vocab_size": "token_embd.weight", "embed.types": "token_types.weight"}
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
# Norms over all heads at once, not over each.
OVER_HEADS = (
    *(row for row in SUBLAYERS if not row.theirs.endswith("_norm.weight")),
    Row("attn_q_norm.weight", ("attn/q_norm/scale",), "NH"),
    Row("attn_k_norm.weight", ("attn/k_norm/scale",), "KH"),
)
# Experts, one tensor for all of a layer; ROUTERS are in float32 in any file.
ROUTERS = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")
EXPERTS = (
    Row(ROUTERS[0], ("experts/router",), "E,D"),
    Row("ffn_gate_exps.weight", ("experts/gate",), "E,F,D"),
    Row("ffn_up_exps.weight", ("experts/up",), "E,F,D"),
    Row("ffn_down_exps.weight", ("experts/down",), "E,D,F"),
    Row(ROUTERS[1], ("experts/shared_gate",), "E,D"),
    Row("ffn_gate_shexp.weight", ("experts/shared/gate",), "F,D"),
    Row("ffn_up_shexp.weight", ("experts/shared/up",), "F,D"),
    Row("ffn_down_shexp.weight", ("experts/shared/down",), "D,F"),
    Row("ffn_gate_inp.bias", ("experts/router_bias",), "E"),
    Row("ffn_gate_exps.bias", ("experts/gate_bias",), "E,F"),
    Row("ffn_up_exps.bias", ("experts/up_bias",), "E,F"),
    Row("ffn_down_exps.bias", ("experts/down_bias",), "E,D"),
)
SINKS = Row("attn_sinks.weight", ("attn/sinks",), "N")
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
AFTER = norms(attn_norm="attn_norm", post_attention_norm="feed_norm")
OUT = norms(post_attention_norm="attn_out_norm", post_ffw_norm="feed_out_norm")
_FUSED_GATE = ("ffn_up.weight", "ffn_gate.weight")
PHI3 = (
    *(row for row in FUSED if row.theirs not in _FUSED_GATE),
    Row("ffn_up.weight", ("feed/gate", "feed/up"), "*F,D"),
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a general.architecture is in transformers.

    family: its model_type. keys: further GGUF keys, by their key of config.json. settings: what
    config.json says of all of its models. rows: the norms and sublayers of a layer. turned: queries
    and keys have the two halves of a head interleaved, as the rotation of the first Llama wants it.
    offset: what is added to the scales of norms. scalars: (layers, query_pre_attn_scalar) of the
    models whose scores are not divided by the root of head_dim. tied: the output is the embedding's
    table where the file has none. shown: keys of config.json that say whether a file has a tensor.
    share: the key of the share of a head that turns.
    """

    family: str
    rows: tuple[Row, ...] = PRE + SUBLAYERS
    keys: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    turned: bool = False
    offset: float = 0.0
    scalars: Mapping[int, int] | None = None
    tied: bool = True
    shown: Mapping[str, str] = field(default_factory=dict)
    share: str = "partial_rotary_factor"


_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
_GRANITE = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
_PARALLEL = {"use_parallel_residual": "use_parallel_residual"}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(family="llama", turned=True, shown=_BIASES),
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
    # llama.cpp knows by the architecture whether weights of experts are made to sum to 1.
    "qwen2moe": Architecture(
        family="qwen2_moe",
        rows=PRE + SUBLAYERS + EXPERTS,
        settings={"norm_topk_prob": False},
        shown={"qkv_bias": "blk.0.attn_q.bias"},
    ),
    "qwen3moe": Architecture(
        family="qwen3_moe", rows=PRE + SUBLAYERS + EXPERTS, settings={"norm_topk_prob": True}
    ),
    "gpt-oss": Architecture(
        family="gpt_oss",
        rows=(*AFTER, *SUBLAYERS, *EXPERTS, SINKS),
        keys={"expert_feed_forward_length": "intermediate_size"},
    ),
    "olmo2": Architecture(family="olmo2", rows=OUT + OVER_HEADS),
    "olmoe": Architecture(
        family="olmoe", rows=PRE + OVER_HEADS + EXPERTS, settings={"norm_topk_prob": False}
    ),
    "phi3": Architecture(family="phi3", rows=PRE + PHI3),
    "granite": Architecture(family="granite", turned=True, keys=_GRANITE, shown=_BIASES),
    "granitemoe": Architecture(
        family="granitemoe", rows=PRE + SUBLAYERS + EXPERTS, turned=True, keys=_GRANITE
    ),
    # Every fourth layer does not turn, which files do not say.
    "smollm3": Architecture(family="smollm3", turned=True),
    # llama.cpp has no windows there.
    "starcoder2": Architecture(
        family="starcoder2", settings={"sliding_window": None, "hidden_act": "gelu_new"}
    ),
    "stablelm": Architecture(
        family="stablelm", keys=_PARALLEL, shown={"use_qkv_bias": "blk.0.attn_q.bias"}
    ),
    "gptneox": Architecture(
        family="gpt_neox",
        rows=PRE + FUSED,
        keys=_PARALLEL | {"rope.freq_base": "rotary_emb_base"},
        settings={"hidden_act": "gelu"},
        share="rotary_pct",
    ),
}
