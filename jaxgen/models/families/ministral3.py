"""Ministral 3 (Mistral AI 2025): Mistral with yarn, whose queries grow with their position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError
from jaxgen.models.families import decoders
from jaxgen.models.families.family import Family, Quirk
from jaxgen.models.families.layer_kinds import ONE_WINDOW
from jaxgen.models.families.quirks import GATED, TIED
from jaxgen.models.families.ropes import ROPE

BETA, SPAN = "llama_4_scaling_beta", "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, SPAN: 16384, BETA: 0.1}
YARN |= {"mscale": 1.0, "mscale_all_dim": 1.0}


def _read_rope(theirs: Mapping[str, Any]) -> dict[str, Any]:
    given = theirs.get("rope_scaling") or theirs.get("rope_parameters") or YARN
    if not isinstance(given, dict):
        raise CheckpointError(f"rope_parameters={given!r:.60} is no mapping")
    if lost := [key for key in (BETA, SPAN) if key not in given]:
        raise CheckpointError(f"rope_parameters lack {lost[0]}, by which queries grow")
    growth = {"scores.growth": given[BETA], "scores.growth_span": given[SPAN]}
    growth = growth if given[BETA] else {}
    own = {name: value for name, value in given.items() if name != BETA}
    return growth | ROPE.read({**theirs, "rope_scaling": None, "rope_parameters": own})


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    told = ROPE.write(config)
    growth = {BETA: config.scores.growth or 0.0, SPAN: config.scores.growth_span or config.context}
    own = {"rope_type": "default", "rope_theta": config.rope.theta}
    return {"rope_parameters": own | (told["rope_scaling"] or {}) | growth}


def _ignored(theirs: Mapping[str, Any]) -> list[str]:
    own = {f".{name}=" for name in (BETA, SPAN, "max_position_embeddings")}
    return [told for told in ROPE.ignored(theirs) if not any(name in told for name in own)]


FAMILY = Family(
    model_type="ministral3",
    architecture="Ministral3ForCausalLM",
    heads=decoders.heads("Ministral3", *decoders.HEADS),
    head_rows=decoders.SCORE,
    choices=decoders.CHOICES,
    defaults=decoders.DEFAULTS
    | {"sliding_window": None, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5},
    quirks=(TIED, GATED, ONE_WINDOW, Quirk(ROPE.keys, _read_rope, _write_rope, _ignored)),
    layer_rows=decoders.LAYER_ROWS,
    **decoders.SHARED,
)
