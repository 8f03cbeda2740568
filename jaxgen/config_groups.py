"""The groups of a ModelConfig: settings that belong together, each a frozen, hashable record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.config_parts import Biases, Embed, Feed, HeadLayer, NormAt, Residual, Scores
from jaxgen.errors import ConfigError
from jaxgen.settings import option

Scaling = Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"]
# What each kind of rotary scaling reads.
SCALES: dict[Scaling, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_context"),
    "llama3": ("factor", "original_context", "low", "high"),
    "yarn": ("factor", "original_context", "low", "high", "attention", "bounds", "mscale"),
    "longrope": ("original_context", "attention", "short", "long"),
}
Bounds = Literal["whole", "exact"]
Pairs = Literal["halves", "halves_back", "halves_of_head", "neighbours"]
Reach = Literal["all", "window", "chunk"]
LayerPositions = Literal["rope", "none"]
Mixer = Literal["attention", "delta"]
Tables = Literal["shared", "own"]
LayerFeed = Literal["dense", "experts"]
Values = Literal["own", "keys"]


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary wavelengths are stretched for a longer context; raises ConfigError if it can't be.

    linear (Chen et al. 2023): all of them. dynamic (NTK-aware): none in texts up to
    `original_context`, in longer ones the more the longer the text is. llama3 (Meta 2024) and yarn
    (Peng et al. 2023): those that turn at most `low` times in `original_context`, none that turns
    more than `high` times, and a mixture in between. longrope (Ding et al. 2024): each by a factor
    of its own, of one list up to `original_context`, of another in longer texts.

    Args:
        kind ... long: the fields below; `jaxgen train --keys` lists them as model.rope.scaling.*.

    >>> stretched = jaxgen.RopeScaling(kind="yarn", factor=4.0, original_context=4096, high=32.0)
    >>> jaxgen.Rope(theta=1e6, scaling=stretched).scaling.factor
    4.0
    """

    kind: Scaling = option(
        "which wavelengths are stretched: none, all (linear, dynamic), the long, or each", "none"
    )
    factor: float = option("by how much", 1.0)
    original_context: int | None = option(
        "dynamic, llama3, yarn, longrope: tokens of the context before", None
    )
    low: float = option("llama3, yarn: waves with fewer turns are stretched in full", 1.0)
    high: float = option("llama3 (4), yarn (32): waves with more turns are left alone", 4.0)
    attention: float | None = option(
        "yarn, longrope: factor of rotated queries and keys; null: yarn's is 0.1 ln(factor) + 1, "
        "longrope's 1",
        None,
    )
    bounds: Bounds = option("yarn: the ends of the mixture are whole pairs, or exact", "whole")
    mscale: float = option(
        "yarn: attention scores are multiplied by (0.1 mscale ln(factor) + 1) squared", 0.0
    )
    short: tuple[float, ...] = option("longrope: of each pair, in texts of original_context", ())
    long: tuple[float, ...] = option("longrope: of each pair, in longer texts", ())

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            fresh = value == type(self).__dataclass_fields__[name].default
            if not fresh and name not in ("kind", *SCALES[self.kind]):
                raise ConfigError(
                    f"rope.scaling.{name}={value} has no effect with kind={self.kind}; remove it"
                )
        needed = "original_context" in SCALES[self.kind]
        if needed and (self.original_context is None or self.original_context < 1):
            raise ConfigError(
                f"rope.scaling.original_context={self.original_context} must be given with "
                f"kind={self.kind}: the tokens of the context before it was stretched"
            )
        if not self.factor > 0:
            raise ConfigError(f"rope.scaling.factor={self.factor} must be greater than 0")
        # With equal bounds there is no mixture in between (Llama 4).
        if not 0 < self.low <= self.high:
            raise ConfigError(
                f"rope.scaling.low={self.low} must be greater than 0 and at most high={self.high}"
            )
        if self.attention is not None and not self.attention > 0:
            raise ConfigError(f"rope.scaling.attention={self.attention} must be greater than 0")
        if self.mscale < 0:
            raise ConfigError(f"rope.scaling.mscale={self.mscale} must be 0 or more")
        if self.kind == "longrope" and (not self.short or len(self.short) != len(self.long)):
            raise ConfigError(
                f"rope.scaling: short has {len(self.short)} factors and long {len(self.long)}; "
                f"longrope needs one of each for every pair that turns"
            )
        if not all(factor > 0 for factor in (*self.short, *self.long)):
            raise ConfigError("rope.scaling: short and long hold a factor that is not above 0")

    @property
    def score_gain(self) -> float:
        """What attention scores are multiplied by besides the gain of queries and keys."""
        return (0.1 * self.mscale * math.log(self.factor) + 1) ** 2 if self.factor > 1 else 1.0


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021): which numbers of a head turn together, and how fast.

    Args:
        theta ... scaling: the fields below; `jaxgen train --keys` lists them as model.rope.*.

    >>> jaxgen.preset("llama-3-8b").rope == jaxgen.Rope(theta=5e5)
    True
    """

    theta: float = option("base wavelength", 10000.0)
    share: float = option("of a head's width, the first part of it that turns", 1.0)
    pairs: Pairs = option(
        "which numbers turn together: i and i + half (halves; halves_back: the other way round), "
        "or 2i and 2i + 1 (neighbours); halves_of_head: halves of all, of whose pairs the first "
        "share turns, as fast as if all did",
        "halves",
    )
    scaling: RopeScaling = option("stretched wavelengths", RopeScaling())

    def __post_init__(self) -> None:
        if not self.theta > 0:
            raise ConfigError(f"rope.theta={self.theta} must be greater than 0")
        if not 0 < self.share <= 1:
            raise ConfigError(f"rope.share={self.share} must be above 0 and at most 1")

    def width(self, head: int) -> int:
        """Return how many numbers of a head of this width are in pairs that can turn."""
        return head if self.pairs == "halves_of_head" else int(head * self.share)

    def turning(self, head: int) -> int:
        """Return how many pairs of a head of this width turn."""
        return int(head * self.share) // 2


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Relative:
    """T5's relative positions (Raffel et al. 2020): a learned bias for each bucket of distances.

    Args:
        buckets ... tables: the fields below; `jaxgen train --keys` lists them as model.relative.*.

    >>> jaxgen.preset("t5-small").relative == jaxgen.Relative(buckets=32, distance=128)
    True
    """

    buckets: int = option("distances told apart", 32)
    distance: int = option("from here on all distances share a bucket", 128)
    tables: Tables = option("shared: one table for all layers; own: one for each", "shared")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"relative.{name}={value} must be at least 1")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Towers:
    """What the two towers of an encoder-decoder share, and what they don't.

    Args:
        encoder_layers ... tokens: the fields below; `jaxgen train --keys` lists them as
            model.towers.*.

    >>> jaxgen.preset("bart-base").towers == jaxgen.Towers(encoder_layers=None, tokens="shared")
    True
    """

    encoder_layers: int | None = option("depth of the encoder; null: as layers", None)
    encoder_window: int | None = option(
        "tokens to each side that its layers with a window see, itself included; null: as window",
        None,
    )
    encoder_d_model: int | None = option(
        "width of its residual stream, which the decoder reads; null: as d_model", None
    )
    encoder_heads: int | None = option("its query heads; null: as heads", None)
    encoder_kv_heads: int | None = option("its key/value heads; null: as kv_heads", None)
    encoder_head_dim: int | None = option("width of one of its heads; null: as head_dim", None)
    encoder_d_ff: int | None = option("its feed-forward width; null: as d_ff", None)
    encoder_feed: Feed | None = option("its feed-forward activation; null: as feed", None)
    encoder_biases: Biases | None = option("its biases; null: as biases", None)
    encoder_norm_at: NormAt | None = option("where its norms are; null: as norm_at", None)
    encoder_norm_epsilon: float | None = option("of its norms; null: as norm_epsilon", None)
    tokens: Tables = option("own: each tower has a table of token vectors", "shared")

    def __post_init__(self) -> None:
        for name, value in self.of_encoder.items():
            if type(value) is int and value < 1:
                raise ConfigError(f"towers.encoder_{name}={value} must be at least 1")
        epsilon = self.encoder_norm_epsilon
        if epsilon is not None and not epsilon > 0:
            raise ConfigError(f"towers.encoder_norm_epsilon={epsilon} must be greater than 0")

    @property
    def of_encoder(self) -> dict[str, Any]:
        """The fields of a ModelConfig that the encoder has of its own."""
        own = {n.removeprefix("encoder_"): v for n, v in vars(self).items() if n != "tokens"}
        return {name: value for name, value in own.items() if value is not None}


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Latent:
    """Latent attention (DeepSeek 2024): keys and values of all heads come from one narrow vector.

    A cache holds that vector and one rotated key, kv_rank + rope_width numbers a token.

    Args:
        q_rank ... norm_epsilon: the fields below; `jaxgen train --keys` lists them as
            model.latent.*.

    >>> latent = jaxgen.Latent(kv_rank=32, rope_width=8, plain_width=16, value_width=16)
    >>> config = jaxgen.ModelConfig(positions="rope", biases="none", latent=latent)
    >>> config.H, config.cached
    (24, (1, 32, 8))
    """

    q_rank: int | None = option(
        "width of the vector that queries come from; null: from the residual stream", None
    )
    kv_rank: int = option("width of the vector that keys and values come from", 512)
    rope_width: int = option("of a head's queries and keys: numbers that turn with position", 64)
    plain_width: int = option("of a head's queries and keys: numbers that don't", 128)
    value_width: int = option("of a head's values", 128)
    norm_epsilon: float = option("of the norms of these vectors", 1e-6)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ConfigError(f"latent.{name}={value} must be greater than 0")

    def check(self, config: Any) -> None:
        """Raise ConfigError for settings of a ModelConfig that latent attention does not have."""
        for name, value, known in (
            ("head_dim", config.head_dim, self.width),
            ("kv_heads", config.kv_heads, config.heads),
        ):
            if value not in (None, known):
                raise ConfigError(f"{name}={value} has no effect with latent; remove it")
        for name, value, known in (
            ("qk_norm", config.qk_norm, "none"),
            ("rope.share", config.rope.share, 1),
            ("scores.by_layer", config.scores.by_layer, "same"),
            ("scores.growth", config.scores.growth, None),
            ("scores.gate", config.scores.gate, "none"),
        ):
            if value != known:
                known = "null" if known is None else known
                raise ConfigError(f"{name}={value} is not known with latent; give {known}")
        if config.topology == "encoder_decoder":
            raise ConfigError("latent with topology=encoder_decoder: no cross-attention is latent")

    @property
    def width(self) -> int:
        """Numbers of a head's queries and keys."""
        return self.plain_width + self.rope_width


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Delta:
    """The gated delta rule (Yang et al. 2024): a layer whose memory is one matrix for each head.

    Args:
        key_heads ... window: the fields below; `jaxgen train --keys` lists them as model.delta.*.

    >>> kinds = {"linear": jaxgen.LayerKind(mixer="delta")}
    >>> delta = jaxgen.Delta(key_heads=2, value_heads=4, key_width=8, value_width=8)
    >>> config = jaxgen.ModelConfig(pattern=("linear", "global"), kinds=kinds, delta=delta)
    >>> config.mixer("linear")
    'delta'
    """

    key_heads: int = option("heads of queries and keys", 16)
    value_heads: int = option("heads of values, a multiple of key_heads", 32)
    key_width: int = option("of a head's queries and keys", 128)
    value_width: int = option("of a head's values", 128)
    window: int = option("tokens of the convolution before the rule, the last included", 4)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 2 if name == "window" else 1
            if value < least:
                raise ConfigError(f"delta.{name}={value} must be at least {least}")
        if self.value_heads % self.key_heads:
            raise ConfigError(
                f"delta.value_heads={self.value_heads} is not a multiple of "
                f"delta.key_heads={self.key_heads}"
            )

    @property
    def channels(self) -> int:
        """Numbers of a token that go through the convolution."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width


SIZES = ("head_dim", "kv_heads", "d_ff")  # that a kind of layers may have of its own


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What the layers of one kind of the pattern do otherwise than the config says.

    Args:
        reach ... sparsity: the fields below.

    >>> kinds = {"far": jaxgen.LayerKind(positions="none")}  # no rotation, as in SmolLM3
    >>> config = jaxgen.ModelConfig(positions="rope", pattern=("global", "far"), kinds=kinds)
    >>> config.rope_of("far") is None
    True
    """

    reach: Reach | None = option(
        "keys that are seen: all before; the last model.window; those of the same chunk of "
        "model.window tokens; null: all, of the kind local the window",
        None,
    )
    positions: LayerPositions | None = option("none: no rotation; null: as model.positions", None)
    rope: Rope | None = option("rotary positions of its own; null: as model.rope", None)
    feed: LayerFeed | None = option(
        "dense: no experts; null: experts, where model.experts has them", None
    )
    mixer: Mixer = option(
        "how tokens read earlier ones: attention, or the gated delta rule of model.delta",
        "attention",
    )
    head_dim: int | None = option("width of one head; null: as model.head_dim", None)
    kv_heads: int | None = option("key/value heads; null: as model.kv_heads", None)
    d_ff: int | None = option("feed-forward width; null: as model.d_ff", None)
    values: Values = option("keys: a value is its key's projection", "own")
    keys_of: str | None = option(
        "kind of layers, of which the last one before it in the pattern has its keys and values; "
        "null: its own",
        None,
    )
    sparsity: float = option(
        "feed-forward: share of the numbers before the activation that are cut, were they normal",
        0.0,
    )

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"kinds: {name}={value} must be at least 1")
        if not 0 <= self.sparsity < 1:
            raise ConfigError(f"kinds: sparsity={self.sparsity} must be in [0, 1)")


GROUPS = {
    "rope": Rope(),
    "relative": Relative(),
    "scores": Scores(),
    "towers": Towers(),
    "embed": Embed(),
    "head_layer": HeadLayer(),
    "residual": Residual(),
    "local": LayerKind(),
}
# Names of settings that are now in a group, as configs written before have them.
RENAMED: dict[str, tuple[str, ...]] = {
    "rope_theta": ("rope", "theta"),
    "rope_scaling": ("rope", "scaling"),
    "rope_theta_local": ("kinds", "local", "rope", "theta"),
    "relative_buckets": ("relative", "buckets"),
    "relative_distance": ("relative", "distance"),
    "query_scalar": ("scores", "query_scalar"),
    "score_cap": ("scores", "cap"),
    "attention_dropout": ("scores", "dropout"),
    "encoder_layers": ("towers", "encoder_layers"),
    "embed_scale": ("embed", "scale"),
    "embed_norm": ("embed", "norm"),
    "token_types": ("embed", "types"),
    "position_offset": ("embed", "offset"),
    "mlm_activation": ("head_layer", "activation"),
}


def in_groups(given: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of `RENAMED` in their groups.

    groups: what is changed where the settings don't give the group, by its name; none: mappings.
    Raises ConfigError where a setting stands there under both of its names.
    """
    found = dict(given)
    for old, path in RENAMED.items():
        if old not in found:
            continue
        value = found.pop(old)
        if old == "rope_theta_local" and value is None:
            continue
        group = given.get(path[0])
        if isinstance(group, Mapping) and path[0] != "kinds" and path[1] in group:
            raise ConfigError(f"{old} and {'.'.join(path)} are one setting; remove the first")
        found[path[0]] = _with(found.get(path[0]), path, value, groups)
    return found


def _with(group: Any, path: tuple[str, ...], value: Any, groups: Mapping[str, Any]) -> Any:
    """Return a group, a record or a mapping of settings, with one value changed."""
    if len(path) == 1:
        return value
    group = groups.get(path[0], {}) if group is None else group
    name = path[1]
    if not isinstance(group, Mapping):
        return replace(group, **{name: _with(getattr(group, name), path[1:], value, groups)})
    return {**group, name: _with(group.get(name), path[1:], value, groups)}
