"""What does not go with a teacher, refused by name."""

from __future__ import annotations

from typing import Any

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.settings import changed


def check_distill(settings: Any) -> None:
    """Raise ConfigError for settings that don't go with a teacher, or have no effect."""
    distill, train, name = settings.distill, settings.train, settings.objective.name
    unread = {"reward", "loss", "clip", "beta"} & {*changed(settings.policy)}
    if distill.teacher is None:
        if changed(distill):
            raise ConfigError(
                "the distill section has no effect without a teacher; give distill.teacher"
            )
        return
    if name not in ("causal", "chat", "policy") or settings.model.topology != "decoder":
        raise ConfigError(
            f"distill.teacher is for objective.name=causal, chat or policy of a decoder, not "
            f"{name} of topology={settings.model.topology}"
        )
    if name == "policy" and (distill.weight < 1 or distill.keep is not None):
        raise ConfigError(
            f"distill.weight={distill.weight} and distill.keep={distill.keep} with "
            f"objective.name=policy: the student's own texts are no examples, and never come "
            f"again; give distill.weight=1 and no keep"
        )
    if name == "policy" and unread:
        raise ConfigError(
            f"policy.{min(unread)} has no effect with distill.teacher, which takes the place of "
            f"rewards; remove it"
        )
    if distill.layers and settings.row_length < settings.model.context:
        raise ConfigError(
            f"distill.layers={distill.layers} with adapter.kind={settings.adapter.kind}: the "
            f"teacher has no virtual tokens; train with another adapter, or none"
        )
    if train.smoothing or train.z_loss or train.loss_chunk or settings.model.experts.number:
        raise ConfigError(
            "train.smoothing, train.z_loss, train.loss_chunk and model.experts don't go with "
            "distill.teacher; remove them"
        )


def check_teacher(config: ModelConfig, settings: Any) -> None:
    """Raise ConfigError for a model that can't teach a run's, or layers that don't fit."""
    distill, model = settings.distill, settings.model
    name = f"distill.teacher={distill.teacher}"
    if config.topology != "decoder" or config.head != "lm":
        raise ConfigError(
            f"{name} has topology={config.topology} and head={config.head}; it must be a decoder "
            f"with head=lm"
        )
    if config.V < model.V:
        raise ConfigError(f"{name} knows {config.V} ids, fewer than model.vocab_size={model.V}")
    if distill.top is not None and distill.top >= model.V:
        raise ConfigError(
            f"distill.top={distill.top} must be less than model.vocab_size={model.V}; null: all "
            f"tokens"
        )
    if config.longest < model.context:
        raise ConfigError(
            f"{name} has a context of {config.longest}, shorter than "
            f"model.context={model.context}; give a shorter one"
        )
    for own, other in distill.layers:
        for whose, layer, of in (("model", own, model), ("teacher", other, config)):
            if not 0 <= layer < of.layers:
                raise ConfigError(
                    f"distill.layers={[*map(list, distill.layers)]}: the {whose} has no layer "
                    f"{layer}; its layers are 0 to {of.layers - 1}"
                )
            kind = of.pattern[(layer - of.leading) % len(of.pattern)]
            if distill.attention and of.mixer(kind) != "attention":
                raise ConfigError(
                    f"distill.attention={distill.attention}: layer {layer} of the {whose} has "
                    f"mixer={of.mixer(kind)}; leave it out of distill.layers"
                )
    if distill.attention and config.heads % model.heads:
        raise ConfigError(
            f"distill.attention={distill.attention}: the teacher's {config.heads} heads are no "
            f"multiple of model.heads={model.heads}; give as many, or attention=0"
        )
