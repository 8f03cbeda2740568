"""MiniCPM3 (Hu et al. 2024): latent attention, and scales of the maximal update parametrisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.models.families import decoders, latents
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.quirks import ATTENTION_BIAS, GATED, TIED


def _read_scales(theirs: Mapping[str, Any]) -> dict[str, Any]:
    depth, base, width = (theirs[key] for key in ("scale_depth", "dim_model_base", "v_head_dim"))
    layers, heads, wide = (
        theirs[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    scales = {"embed.scale": theirs["scale_emb"], "output_scale": wide / (base or wide)}
    return {
        **{name: "one" if scale == 1 else float(scale) for name, scale in scales.items()},
        "residual_scale": 1.0 if depth is None else depth / math.sqrt(layers),
        "latent.value_width": wide // heads if width is None else width,
    }


def _write_scales(config: ModelConfig) -> dict[str, Any]:
    scales: dict[Any, float] = {"one": 1.0, "root": math.sqrt(config.d_model)}
    embed, output = (scales.get(x, x) for x in (config.embed.scale, config.output_scale))
    root = math.sqrt(config.layers)
    depth = config.residual_scale * root
    told = float(f"{depth:.12g}")  # as it was before it was divided
    return {
        "scale_emb": embed,
        "scale_depth": None if config.residual_scale == 1 else told,
        "dim_model_base": round(config.d_model / output),
    }


SCALES = Quirk(("scale_emb", "scale_depth", "dim_model_base"), _read_scales, _write_scales)

FAMILY = Family(
    model_type="minicpm3",
    architecture="MiniCPM3ForCausalLM",
    heads={"MiniCPM3ForSequenceClassification": "classes", "MiniCPM3Model": "none"},
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=latents.DEFAULTS
    | {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "initializer_range": 0.1}
    | {"q_lora_rank": 768, "kv_lora_rank": 256, "qk_rope_head_dim": 32, "qk_nope_head_dim": 64}
    | {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "v_head_dim": None},
    only={"mlp_bias": (False,)},
    ignored=frozenset({"head_dim", "qk_head_dim"}),
    quirks=(TIED, GATED, latents.ROPE, ATTENTION_BIAS, SCALES),
    layer_rows=latents.LAYER_ROWS,
    **latents.SHARED,
)
