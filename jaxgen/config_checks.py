"""What the settings of a ModelConfig must be together; each check names those at fault."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from jaxgen.config_groups import LayerKind, Relative, Rope, Towers
from jaxgen.config_parts import Disentangled, Embed, HeadActivation, HeadLayer
from jaxgen.errors import ConfigError


def check_sizes(config: Any) -> None:
    """Raise ConfigError unless widths are positive, and fit the heads."""
    sizes = ("layers", "d_model", "heads")
    optional = ("vocab_size", "kv_heads", "head_dim", "d_ff", "window", "classes", "unroll")
    for name in (*sizes, *(n for n in optional if getattr(config, n) is not None)):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
    if config.context < 2:
        raise ConfigError(
            f"context={config.context} must be at least 2: one token to read, one to write"
        )
    own_width = config.head_dim is not None or config.latent is not None
    if not own_width and config.d_model % config.heads:
        raise ConfigError(
            f"d_model={config.d_model} is not a multiple of heads={config.heads}; "
            f"nearest that work: heads={_divisors_near(config.d_model, config.heads)}, "
            f"or set head_dim"
        )
    if config.heads % config.K:
        raise ConfigError(
            f"heads={config.heads} is not a multiple of kv_heads={config.K}; "
            f"nearest that work: kv_heads={_divisors_near(config.heads, config.K)}"
        )


def _divisors_near(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = max(d for d in divisors if d <= wanted) if wanted >= 1 else 1
    above = min((d for d in divisors if d >= wanted), default=number)
    return f"{below} or {above}"


def check_rope(config: Any) -> None:
    """Raise ConfigError unless heads have pairs that turn, wherever rope has an effect."""
    for kind in dict.fromkeys(config.pattern):
        rope, head = config.rope_of(kind), config.of_kind(kind).H
        head = head if config.latent is None else config.latent.rope_width
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
    if config.positions.startswith("sinusoid") and config.d_model % 2:
        raise ConfigError(f"d_model={config.d_model} is odd; sinusoidal positions need an even one")
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
    if config.head in ("mlm", "pooled") and config.topology != "encoder":
        raise ConfigError(
            f"head={config.head} reads from both sides, so it needs topology=encoder, "
            f"but topology={config.topology}"
        )
    if config.prompt == "both" and config.topology != "decoder":
        raise ConfigError(f"prompt=both has no effect: topology={config.topology}")


def check_block(config: Any) -> None:
    """Raise ConfigError unless sublayers that read one stream have a norm before them alone."""
    if config.parallel != "none" and config.norm_at != "pre":
        raise ConfigError(f"parallel={config.parallel} needs norm_at=pre, not {config.norm_at}")
    if config.parallel != "none" and config.topology == "encoder_decoder":
        raise ConfigError(f"parallel={config.parallel} has no place for a cross-attention")


def check_encoder(config: Any) -> None:
    """Raise ConfigError unless the encoder of two towers is a model of its own."""
    if config.topology != "encoder_decoder" or config.towers == Towers():
        return
    shared = config.towers.tokens == "shared" and config.stem is None
    if shared and config.memory_width != config.d_model:
        raise ConfigError(
            f"towers.encoder_d_model={config.memory_width} with d_model={config.d_model}: they "
            f"share no table of tokens; give towers.tokens=own"
        )
    try:
        config.encoder()
    except ConfigError as error:
        raise ConfigError(f"of the encoder: {error}") from None


def check_embed(config: Any) -> None:
    """Raise ConfigError unless embeddings, and layers that share weights, fit the rest."""
    if config.stem is not None:
        _check_stem(config)
    if config.weight_sets is not None:
        _check_shared_weights(config)
    if config.embed.norm == "first" and (config.norm_at, config.parallel) != ("pre", "none"):
        raise ConfigError(
            f"embed.norm=first stands for the norm before the first attention, but "
            f"norm_at={config.norm_at} with parallel={config.parallel} has none such; give "
            f"embed.norm=norm"
        )
    if config.embed.width is not None and config.topology == "encoder_decoder":
        raise ConfigError("embed.width needs one tower, but topology=encoder_decoder has two")


def _check_stem(config: Any) -> None:
    """Raise ConfigError where sound or images have no encoder, or a setting of tokens is left."""
    told = f"stem.kind={config.stem.kind}"
    if config.topology == "decoder":
        raise ConfigError(f"{told} feeds an encoder, but topology=decoder has none")
    if config.topology == "encoder_decoder":
        if config.towers.tokens != "shared":
            raise ConfigError(f"towers.tokens={config.towers.tokens} has no effect: {told}")
        return
    for name, value, known in (
        ("positions", config.positions, ("none",)),
        ("head", config.head, ("classes", "pooled", "none")),
        ("embed", config.embed, (Embed(),)),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value} has no effect in an encoder with {told}")


def _check_shared_weights(config: Any) -> None:
    """Raise ConfigError unless layers can share weights, in as many sets as there are."""
    name, sets = f"layer_weights={config.layer_weights}", config.weight_sets
    if config.topology == "encoder_decoder":
        raise ConfigError(f"{name} needs one tower, but there are two")
    if config.experts.first_dense:
        raise ConfigError(f"{name}: layers before those with experts share nothing")
    if config.layers % len(config.pattern):
        raise ConfigError(
            f"{name}: layers={config.layers} is not a multiple of the {len(config.pattern)} layers "
            f"of pattern"
        )
    if type(config.layer_weights) is int and sets < 2:
        raise ConfigError(f"{name} must be 2 or more; one set for all layers is shared")
    periods = config.layers // len(config.pattern)
    if periods % sets:
        what = "layers" if len(config.pattern) == 1 else f"periods of {len(config.pattern)} layers"
        raise ConfigError(
            f"{name} does not divide the {periods} {what}; nearest that work: "
            f"{_divisors_near(periods, sets)}"
        )
    if config.embed.norm == "first":
        raise ConfigError(f"{name}: with embed.norm=first the first layer is unlike the rest")


def check_residual(config: Any) -> None:
    """Raise ConfigError where a model has no place for what is around sublayers of decoders."""
    own = config.residual
    told = {
        f"residual.streams={own.streams}": own.streams > 1,
        f"residual.laurel={own.laurel}": own.laurel is not None,
        f"residual.gain={own.gain}": own.gain != "none",
        "per_layer": config.per_layer is not None,
    }
    for name in (name for name, given in told.items() if given):
        for key, value, known in (
            ("topology", config.topology, "decoder"),
            ("parallel", config.parallel, "none"),
        ):
            if value != known:
                raise ConfigError(f"{name} is not known with {key}={value}; give {known}")
    if config.qk_norm == "qkv" and config.topology == "encoder_decoder":
        raise ConfigError("qk_norm=qkv is not known with topology=encoder_decoder")
    for name, kind in config.kinds.items():
        if kind.sparsity and config.experts.are_in(config, name):
            raise ConfigError(f"kinds.{name}.sparsity={kind.sparsity} has no effect: experts")


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


def check_kinds(config: Any) -> None:
    """Raise ConfigError unless the kinds of layers of a ModelConfig are described, and in use."""
    if not config.pattern:
        raise ConfigError("pattern=() names no layer; write [global]")
    known = {"global", "local", *config.kinds}
    if unknown := [name for name in config.pattern if name not in known]:
        raise ConfigError(
            f"pattern has layers of the kind {unknown[0]!r}, which kinds does not describe; "
            f"known are {', '.join(sorted(known))}"
        )
    if unused := sorted(config.kinds.keys() - set(config.pattern)):
        raise ConfigError(f"kinds.{unused[0]} has no effect: pattern has no such layer")
    spans = [name for name in config.pattern if config.reach(name) != "all"]
    if spans and config.window is None:
        raise ConfigError(
            f"pattern has {spans[0]} layers but window is null; give window in tokens"
        )
    if not spans and config.window is not None:
        raise ConfigError(f"window={config.window} has no effect: pattern has no local layer")
    deltas = [name for name in config.pattern if config.mixer(name) == "delta"]
    if bool(deltas) != (config.delta is not None):
        raise ConfigError(
            f"delta={config.delta} with {len(deltas)} kinds of layers of mixer=delta: it is given "
            f"with such kinds, and only there"
        )
    _check_shared(config)
    _check_sizes_of_kinds(config)
    for name in deltas:
        own = config.kinds[name]
        if own != LayerKind(mixer="delta"):
            raise ConfigError(f"kinds.{name}: with mixer=delta no other field has an effect")
    for name, value, known in (
        ("topology", config.topology, ("decoder",)),
        ("prompt", config.prompt, ("back",)),
        ("positions", config.positions, ("rope", "none", "learned", "sinusoid")),
    ):
        if deltas and value not in known:
            raise ConfigError(
                f"{name}={value} is not known with layers of mixer=delta; known: {', '.join(known)}"
            )


def _check_shared(config: Any) -> None:
    """Raise ConfigError where a layer can't have the keys and values of another."""
    shared = {name: kind for name, kind in config.kinds.items() if kind.keys_of is not None}
    for name, kind in shared.items():
        told, giver = f"kinds.{name}.keys_of={kind.keys_of}", config.kinds.get(kind.keys_of)
        if kind.keys_of not in config.pattern[: config.pattern.index(name)]:
            raise ConfigError(
                f"{told}: no layer of pattern before the first {name} is of that kind"
            )
        if kind.keys_of in shared or (giver is not None and giver.mixer != "attention"):
            raise ConfigError(f"{told}: such layers have no keys of their own")
        if config.reach(name) != config.reach(kind.keys_of) or kind.values != "own":
            raise ConfigError(f"{told}: both need one reach, and values=own")
    for name, value, known in (
        ("topology", config.topology, "decoder"),
        ("latent", config.latent, None),
        ("layer_weights", config.layer_weights, "own"),
        ("layers before the pattern", config.leading, 0),
    ):
        if shared and value != known:
            raise ConfigError(
                f"kinds.{next(iter(shared))}.keys_of is not known with {name}={value}"
            )


def _check_sizes_of_kinds(config: Any) -> None:
    """Raise ConfigError unless sizes of kinds of layers fit the rest, and one another's caches."""
    buffers: dict[bool, tuple[str, tuple[int, ...]]] = {}
    for name in dict.fromkeys(config.pattern):
        kind = config.kinds.get(name, LayerKind())
        if (kind.head_dim or kind.kv_heads or kind.values != "own") and config.latent is not None:
            raise ConfigError(
                f"kinds.{name}: head_dim, kv_heads and values are not known with latent"
            )
        if config.heads % config.of_kind(name).K:
            raise ConfigError(
                f"heads={config.heads} is not a multiple of kinds.{name}.kv_heads={kind.kv_heads}"
            )
        if config.mixer(name) == "delta":
            continue
        cached, window = config.of_kind(name).cached, config.reach(name) == "window"
        other, before = buffers.setdefault(window, (name, cached))
        giver = name if kind.keys_of is None else kind.keys_of
        if cached != before or cached != config.of_kind(giver).cached:
            raise ConfigError(
                f"kinds {other} and {name} have heads of other sizes, {before} and {cached}; "
                f"layers with a window have one size, and all others one"
            )
