"""What the settings of a ModelConfig must be together; each check names those at fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from jaxgen.config_groups import Relative, Rope
from jaxgen.config_parts import Disentangled, HeadActivation, HeadLayer
from jaxgen.errors import ConfigError


def check_rope(config: Any) -> None:
    """Raise ConfigError unless heads have pairs that turn, wherever rope has an effect."""
    head = config.H if config.latent is None else config.latent.rope_width
    turned = [config.rope_of(name) for name in dict.fromkeys(config.pattern)]
    for rope in turned:
        width = head if rope is None else rope.width(head)
        if width % 2 and rope is not None:
            name = "head_dim" if config.latent is None else "latent.rope_width"
            name = name if rope.share == 1 else f"rope.share * {name}"
            raise ConfigError(
                f"{name}={width} is odd; rotary positions turn pairs, use an even one"
            )
        if width < 2:
            raise ConfigError(f"rope.share={rope and rope.share} leaves no pair to turn")
        given = 0 if rope is None else len(rope.scaling.short)
        if rope is not None and given and given != width // 2:
            raise ConfigError(
                f"rope.scaling has {given} factors, but {width // 2} pairs of a head turn"
            )
    if config.positions == "rope":
        return
    if config.rope.scaling.kind != "none":
        raise ConfigError(
            f"rope.scaling.kind={config.rope.scaling.kind} needs positions=rope, "
            f"but positions={config.positions}"
        )
    for name, kind in config.kinds.items():
        if kind.rope is not None and kind.positions != "rope":
            raise ConfigError(f"kinds.{name}.rope has no effect: positions={config.positions}")
    if config.rope != Rope():
        raise ConfigError(f"rope has no effect: positions={config.positions}")


def check_positions(config: Any) -> None:
    """Raise ConfigError for settings of other positions than those of the config."""
    groups = {
        "relative": (config.has_relative, Relative()),
        "disentangled": (config.positions == "disentangled", Disentangled()),
    }
    for name, (read, fresh) in groups.items():
        if not read and getattr(config, name) != fresh:
            raise ConfigError(f"{name} has no effect: positions={config.positions}")
    offset = config.has_position_table or config.positions == "sinusoid_t2t"
    if config.embed.offset and not offset:
        raise ConfigError(
            f"embed.offset={config.embed.offset} has no effect: positions={config.positions}"
        )
    if config.positions == "disentangled" and config.topology != "encoder":
        raise ConfigError(
            f"positions=disentangled needs topology=encoder, but topology={config.topology}"
        )
    exact = config.relative.buckets // (4 if config.topology != "decoder" else 2)
    if config.has_relative and (exact < 1 or config.relative.distance <= exact):
        raise ConfigError(
            f"relative.buckets={config.relative.buckets} with "
            f"relative.distance={config.relative.distance}: give at least 4 buckets, and a "
            f"distance above the {exact} that have a bucket each"
        )


def check_topology(config: Any) -> None:
    """Raise ConfigError for what a topology has no place for."""
    for name, value in vars(config.towers).items():
        if value not in (None, "shared") and config.topology != "encoder_decoder":
            raise ConfigError(f"towers.{name}={value} has no effect: topology={config.topology}")
    if config.towers.encoder_window is not None and config.window is None:
        raise ConfigError(
            f"towers.encoder_window={config.towers.encoder_window} has no effect: window=None"
        )
    if (config.classes is not None) != (config.head in ("classes", "token_classes")):
        raise ConfigError(
            f"head={config.head} with classes={config.classes}: classes is given with "
            f"head=classes or head=token_classes, and only there"
        )
    if config.head == "token_classes" and config.topology == "encoder_decoder":
        raise ConfigError(
            "head=token_classes reads each token of one tower: topology=encoder_decoder has "
            "two; give topology=encoder"
        )
    if config.head in ("mlm", "pooled") and config.topology != "encoder":
        raise ConfigError(
            f"head={config.head} reads from both sides, so it needs topology=encoder, "
            f"but topology={config.topology}"
        )
    if config.prompt == "both" and config.topology != "decoder":
        raise ConfigError(f"prompt=both has no effect: topology={config.topology}")


def check_embed(config: Any) -> None:
    """Raise ConfigError unless embeddings, and layers that share weights, fit the rest."""
    if config.layer_weights == "shared" and config.topology == "encoder_decoder":
        raise ConfigError("layer_weights=shared needs one tower, but there are two")
    if config.layer_weights == "shared" and config.experts.first_dense:
        raise ConfigError("layer_weights=shared: layers before those with experts share nothing")
    if config.layer_weights == "shared" and config.layers % len(config.pattern):
        raise ConfigError(
            f"layer_weights=shared: layers={config.layers} is not a multiple of the "
            f"{len(config.pattern)} layers of pattern"
        )
    if config.embed.norm == "first" and (config.norm_at, config.parallel) != ("pre", "none"):
        raise ConfigError(
            f"embed.norm=first stands for the norm before the first attention, but "
            f"norm_at={config.norm_at} with parallel={config.parallel} has none such; give "
            f"embed.norm=norm"
        )
    if config.layer_weights == "shared" and config.embed.norm == "first":
        raise ConfigError(
            "layer_weights=shared: with embed.norm=first the first layer is unlike the rest"
        )
    if config.embed.width is not None and config.topology == "encoder_decoder":
        raise ConfigError("embed.width needs one tower, but topology=encoder_decoder has two")


def check_head_layer(config: Any) -> None:
    """Raise ConfigError unless the layer of a head has such a head."""
    pooled = config.head in ("classes", "pooled") and config.topology == "encoder"
    if config.head_layer.pool != "first" and not pooled:
        raise ConfigError(f"head_layer.pool={config.head_layer.pool} has no effect: no such head")
    if config.head_kind == "none":
        if replace(config.head_layer, kind=None, pool="first") != HeadLayer():
            raise ConfigError(f"head_layer has no effect: head={config.head} has no dense layer")
        return
    if config.head == "none" or (config.topology == "decoder" and config.head != "lm"):
        raise ConfigError(
            f"head_layer.kind={config.head_kind}: head={config.head} of a {config.topology} has no "
            f"dense layer"
        )
    if config.head_activation not in get_args(HeadActivation):
        raise ConfigError(
            f"head={config.head} has one dense layer, which feed={config.feed} does not fit; give "
            f"head_layer.activation, such as gelu"
        )
