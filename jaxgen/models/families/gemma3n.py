"""Gemma 3n, text only (Google 2025): four residual streams, vectors by layer, shared keys."""

from __future__ import annotations

from typing import Any

from jaxgen.models.families import decoders, gemma, gemma2, shared_keys
from jaxgen.models.families.family import Family
from jaxgen.models.families.quirks import ATTENTION_BIAS, TIED
from jaxgen.models.families.rows import Row

CHOICES = gemma2.CHOICES | {"norm": "rms", "qk_norm": "qkv", "scores.multiplier": 1.0}
SIZES = {ours: key for ours, key in decoders.SIZES.items() if ours != "d_ff"} | {
    "logit_cap": "final_logit_softcapping",
    "residual.streams": "altup_num_inputs",
    "residual.clip": "altup_coef_clip",
    "residual.laurel": "laurel_rank",
}
ALTUP = (
    Row("altup.correct_output_scale", ("streams/gain",), "D"),
    Row("altup.correction_coefs.weight", ("streams/correct",), "P,O"),
    Row("altup.prediction_coefs.weight", ("streams/predict",), "Q,P"),
    Row("altup.modality_router.weight", ("streams/router",), "P,D"),
    Row("altup.router_norm.weight", ("streams/norm/scale",), "D"),
    Row("laurel.linear_left.weight", ("laurel/down",), "Z,D"),
    Row("laurel.linear_right.weight", ("laurel/up",), "D,Z"),
    Row("laurel.post_laurel_norm.weight", ("laurel/norm/scale",), "D"),
)
DEFAULTS = gemma.DEFAULTS | {"sliding_window": 512, "hidden_activation": gemma.TANH}
DEFAULTS |= {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144}
SHARED: dict[str, Any] = decoders.SHARED | {
    "ignored_tensors": (*decoders.SHARED["ignored_tensors"], *shared_keys.UNREAD),
}

FIELDS: dict[str, Any] = SHARED | {
    "sizes": SIZES,
    "rows": (
        *decoders.ROWS,
        *shared_keys.VECTOR_ROWS,
        Row("model.altup_projections.{}.weight", ("to_streams/others",), "O,D"),
        Row("model.altup_unembed_projections.{}.weight", ("to_one/others",), "O,D"),
    ),
}

FAMILY = Family(
    model_type="gemma3n_text",
    architecture="Gemma3nForCausalLM",
    heads={"Gemma3nTextModel": "none"},
    choices=CHOICES,
    defaults=DEFAULTS
    | {"num_key_value_heads": 2, "final_logit_softcapping": 30.0, "num_kv_shared_layers": 15}
    | {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "laurel_rank": 64}
    | {"altup_num_inputs": 4, "altup_coef_clip": 120.0, "activation_sparsity_pattern": None},
    only={"hidden_activation": (gemma.TANH,), "altup_active_idx": (0,)}
    | {"altup_correct_scale": (True,)},
    ignored=frozenset({"query_pre_attn_scalar", "altup_lr_multiplier"}),
    quirks=(TIED, ATTENTION_BIAS, shared_keys.LAYERS_3N, shared_keys.VECTORS),
    layer_rows=(*gemma2.LAYER_ROWS, *shared_keys.VECTOR_LAYER_ROWS, *ALTUP),
    **FIELDS,
)
