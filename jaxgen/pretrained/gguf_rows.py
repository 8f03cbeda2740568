"""Tensors of GGUF files by our paths: llama.cpp calls those of all architectures alike.

Sources: gguf-py's constants.py and tensor_mapping.py, and convert_hf_to_gguf.py, of llama.cpp.
"""

from __future__ import annotations

from jaxgen.models.families.rows import Row, norm

ROWS = (
    Row("token_embd.weight", ("embed/tokens",), "V,D"),
    Row("position_embd.weight", ("embed/positions",), "S,D"),
    Row("token_types.weight", ("embed/types",), "Y,D"),
    Row("token_embd_norm.weight", ("embed/norm/scale",), "D"),
    Row("token_embd_norm.bias", ("embed/norm/bias",), "D"),
    Row("output_norm.weight", ("final_norm/scale",), "D"),
    Row("output_norm.bias", ("final_norm/bias",), "D"),
    Row("output.weight", ("unembed/tokens",), "V,D"),
    Row("output.bias", ("unembed/bias",), "V"),
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
# Experts, one tensor for all of a layer; routers and what else is small are in float32 in any file.
RATE = "ssm_a"  # minus e to the power of ours
VECTORS = ("ffn_gate_inp_shexp.weight",)  # matrices of ours with one row
EXACT = (
    "position_embd.weight",
    "token_types.weight",
    "ffn_gate_inp.weight",
    "attn_rel_b.weight",
    "ssm_conv1d.weight",
)
EXPERTS = (
    Row("ffn_gate_inp.weight", ("experts/router",), "E,D"),
    Row("ffn_gate_exps.weight", ("experts/gate",), "E,F,D"),
    Row("ffn_up_exps.weight", ("experts/up",), "E,F,D"),
    Row("ffn_down_exps.weight", ("experts/down",), "E,D,F"),
    Row(VECTORS[0], ("experts/shared_gate",), "ED"),
    Row("ffn_gate_shexp.weight", ("experts/shared/gate",), "F,D"),
    Row("ffn_up_shexp.weight", ("experts/shared/up",), "F,D"),
    Row("ffn_down_shexp.weight", ("experts/shared/down",), "D,F"),
    Row("ffn_gate_inp.bias", ("experts/router_bias",), "E"),
    Row("ffn_gate_exps.bias", ("experts/gate_bias",), "E,F"),
    Row("ffn_up_exps.bias", ("experts/up_bias",), "E,F"),
    Row("ffn_down_exps.bias", ("experts/down_bias",), "E,D"),
    Row("exp_probs_b.bias", ("experts/choice_bias",), "E"),
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

# Falcon's parallel blocks: their own name for the norm before attention, if there are two.
FALCON = (
    *norm("attn_norm", "attn_norm", when=("parallel", "one_norm")),
    *norm("attn_norm", "feed_norm", when=("parallel", "two_norms")),
    *norm("attn_norm_2", "attn_norm", when=("parallel", "two_norms")),
    *FUSED,
)
# Latent attention; older files have one matrix of keys and values.
LATENT = (
    Row("attn_q_a.weight", ("attn/q_down",), "Z,D"),
    Row("attn_q_a_norm.weight", ("attn/q_norm/scale",), "Z"),
    Row("attn_q_b.weight", ("attn/q_up",), "NH,Z"),
    Row("attn_kv_a_mqa.weight", ("attn/kv_down",), "Z,D"),
    Row("attn_kv_a_norm.weight", ("attn/kv_norm/scale",), "Z"),
    Row("attn_k_b.weight", ("attn/k_up",), "N,Z,H"),
    Row("attn_v_b.weight", ("attn/v_up",), "N,H,Z"),
    *(row for row in SUBLAYERS if not row.theirs.startswith("attn_q_norm")),
)
ONE_KV = (Row("attn_kv_b.weight", ("attn/k_up", "attn/v_up"), "N*H,Z"),)

# T5's: layers of two towers, whose first ones have the table of relative positions of all.
_BIAS = "attn_rel_b.weight"
T5_TABLES = (
    Row("token_embd.weight", ("embed/tokens",), "V,D"),
    Row("enc.output_norm.weight", ("encoder/final_norm/scale",), "D"),
    Row("dec.output_norm.weight", ("final_norm/scale",), "D"),
    Row("output.weight", ("unembed/tokens",), "V,D"),
)
T5_BIASES = (
    Row(f"enc.blk.0.{_BIAS}", ("encoder/relative/bias",), "R,N"),
    Row(f"dec.blk.0.{_BIAS}", ("relative/bias",), "R,N"),
)
T5_OWN_BIASES = (Row(_BIAS, ("attn/relative/bias",), "R,N"),)
_SHORT = {"attn_q": "NH,D", "attn_k": "NH,D", "attn_v": "NH,D", "attn_o": "D,NH"}
T5_ENCODER = (
    *(row for row in PRE if row.theirs.endswith("weight")),
    *(Row(f"{name}.weight", (f"attn/{name[-1]}",), axes) for name, axes in _SHORT.items()),
    *(row for row in SUBLAYERS if row.theirs.startswith("ffn") and row.theirs.endswith("weight")),
)
T5_DECODER = (
    *T5_ENCODER,
    Row("cross_attn_norm.weight", ("cross_norm/scale",), "D"),
    *(Row(f"cross_{name}.weight", (f"cross/{name[-1]}",), axes) for name, axes in _SHORT.items()),
)


# Layers of the gated delta rule among those of attention, whose queries have a gate.
def delta(values: str) -> tuple[Row, ...]:
    """Return the rows of both; values: the order of the value heads, "KG" or "GK"."""
    rule = "attn/rate"  # which only layers of the delta rule have
    mixed = tuple(f"attn/{x}" for x in "qkv")
    sublayers = tuple(
        row._replace(unless=rule) if row.theirs.startswith("attn") else row
        for row in SUBLAYERS
        if not row.theirs.startswith("attn_q.")
    )
    return (
        *AFTER,
        Row("attn_q.weight", ("attn/q", "attn/gate"), "N*H,D", unless=rule),
        Row("attn_q.bias", ("attn/q_bias", "attn/gate_bias"), "N*H", unless=rule),
        *sublayers,
        Row("attn_qkv.weight", mixed, f"*{values}H,D", beside=rule),
        Row("attn_gate.weight", ("attn/gate",), f"{values}H,D", beside=rule),
        Row("ssm_conv1d.weight", tuple(f"{x}_conv" for x in mixed), f"*{values}H,W"),
        Row(RATE, (rule,), values),
        Row("ssm_dt.bias", ("attn/step_bias",), values),
        Row("ssm_norm.weight", ("attn/norm/scale",), "H"),
        Row("ssm_out.weight", ("attn/o",), f"D,{values}H", beside=rule),
    )


GATES = (Row("ssm_ba.weight", ("attn/beta", "attn/step"), "K*G,D"),)
GATES_APART = (
    Row("ssm_beta.weight", ("attn/beta",), "GK,D"),
    Row("ssm_alpha.weight", ("attn/step",), "GK,D"),
)
OLDER_DELTA = (
    Row("ssm_in.weight", ("attn/q", "attn/k", "attn/v", "attn/gate"), "K*GH,D", beside="attn/rate"),
)

# Gemma 3n's: vectors of tokens for each layer, streams of residuals, and a path of low rank.
STREAM_TABLES = (
    *ROWS,
    Row("per_layer_token_embd.weight", ("per_layer/tokens",), "V,Z"),
    Row("per_layer_model_proj.weight", ("per_layer/project",), "Z,D"),
    Row("per_layer_proj_norm.weight", ("per_layer/norm/scale",), "Z"),
    Row("altup_proj.weight", ("to_streams/others",), "P,O,D"),
    Row("altup_unembd_proj.weight", ("to_one/others",), "P,O,D"),
)
STREAMS = (
    Row("inp_gate.weight", ("per_layer/gate",), "Z,D"),
    Row("proj.weight", ("per_layer/project",), "D,Z"),
    Row("post_norm.weight", ("per_layer/norm/scale",), "D"),
    Row("altup_correct_coef.weight", ("streams/correct",), "P,O"),
    Row("altup_correct_scale.weight", ("streams/gain",), "D"),
    Row("altup_predict_coef.weight", ("streams/predict",), "Q,P"),
    Row("altup_router.weight", ("streams/router",), "P,D"),
    Row("altup_router_norm.weight", ("streams/norm/scale",), "D"),
    Row("laurel_l.weight", ("laurel/down",), "Z,D"),
    Row("laurel_r.weight", ("laurel/up",), "D,Z"),
    Row("laurel_post_norm.weight", ("laurel/norm/scale",), "D"),
)
