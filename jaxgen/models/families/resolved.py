"""Configs compared: what two of them compute differently, whatever is left to defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxgen import settings
from jaxgen.config import ModelConfig
from jaxgen.errors import CheckpointError

MOST_NAMED = 6  # fields in a message
# Fields of a ModelConfig that a published config has no word for, and that change no logit.
FREE = (
    "dropout",
    "scores.dropout",
    "experts.balance",
    "experts.balance_over",
    "experts.balance_rate",
    "experts.z",
    "init_std",
    "param_dtype",
    "compute_dtype",
    "remat",
    "unroll",
)


class LacksError(CheckpointError):
    """A family or file format that can't say all of a config; lost: what, as "field=value"."""

    def __init__(self, name: str, lost: list[str]) -> None:
        more = f" and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
        super().__init__(f"{name} has no {', '.join(lost[:MOST_NAMED])}{more}")
        self.lost = lost


def value_of(config: ModelConfig, field: str) -> Any:
    """Return a field of a config, or one of its groups, as "rope.theta".

    Raises CheckpointError where the config has no such group: no family that needs it can say it.
    """
    value: Any = config
    for name in field.split("."):
        if value is None:
            raise CheckpointError(f"the config has no {field.rpartition('.')[0]}, so no {field}")
        value = getattr(value, name)
    return value


def resolved(config: ModelConfig) -> ModelConfig:
    """Return a config whose derived sizes and layer kinds are written out."""
    kinds = tuple(config.pattern[i % len(config.pattern)] for i in range(config.layers))
    kinds = config.pattern if config.weight_sets else kinds
    there = {name: kind for name, kind in config.kinds.items() if name in kinds}
    window = config.window if any(config.reach(kind) != "all" for kind in kinds) else None
    scores, head_layer = config.scores, replace(config.head_layer, kind=config.head_kind)
    experts = config.experts
    if scores.multiplier is None:
        scores = replace(scores, query_scalar=float(scores.query_scalar or config.H))
    per_layer = config.per_layer
    if per_layer is not None and config.vocab_size is not None:
        per_layer = replace(per_layer, vocab_size=per_layer.vocab_size or config.V)
    if config.head_kind != "none":
        head_layer = replace(head_layer, activation=config.head_activation)
    towers = config.towers
    if config.topology == "encoder_decoder":
        one = config.encoder()
        towers = replace(
            towers,
            encoder_layers=one.layers,
            encoder_d_model=one.d_model,
            encoder_heads=one.heads,
            encoder_kv_heads=one.K,
            encoder_head_dim=one.H,
            encoder_d_ff=one.F,
            encoder_feed=one.feed,
            encoder_biases=one.biases,
            encoder_norm_at=one.norm_at,
            encoder_norm_epsilon=one.norm_epsilon,
        )
    return config.replace(
        towers=towers,
        kv_heads=config.K,
        head_dim=config.H,
        d_ff=config.F,
        scores=scores,
        experts=replace(experts, d_ff=experts.width(config.F)) if experts.number else experts,
        pattern=config.pattern if experts.first_dense else kinds,
        kinds=there,
        window=window,
        head_layer=head_layer,
        per_layer=per_layer,
    )


def differences(one: ModelConfig, other: ModelConfig) -> list[str]:
    """Return "field=value" of `one` where the two compute different logits."""
    rows = settings.diff(resolved(one), resolved(other))
    fields = [f"{key}={value!s:.60}" for key, value, _ in rows if key not in FREE]
    if fields or one.topology != "encoder_decoder":
        return fields
    # What both leave out may be another in each of their encoders, such as the scale of scores.
    return [f"encoder with {lost}" for lost in differences(one.encoder(), other.encoder())]
