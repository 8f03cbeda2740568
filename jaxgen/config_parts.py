"""Groups of a ModelConfig about its scores and what is around layers: embeddings, heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError
from jaxgen.settings import option

Scale = Literal["one", "root"]
EmbedNorm = Literal["none", "norm", "first", "tokens"]
Project = Literal["sum", "tokens"]
HeadLayerKind = Literal["none", "dense", "norm"]
HeadActivation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "tanh"]
HeadBias = Literal["bias", "none"]
Pool = Literal["first", "last", "mean"]
Term = Literal["query", "key"]
TableNorm = Literal["none", "norm"]
Gain = Literal["none", "learned"]
Tables = Literal["shared", "own"]
Alibi = Literal["plain", "scaled"]
Sinks = Literal["none", "learned"]
ByLayer = Literal["same", "inverse"]
OutputGate = Literal["none", "sigmoid"]
GrowthIn = Literal["all", "unturned"]
NormAt = Literal["pre", "post", "both", "out"]
Activation = Literal["gelu", "gelu_tanh", "gelu_sigmoid", "relu", "relu2", "silu"]
Feed = Literal[Activation, "swiglu", "swiglu_clamped", "geglu", "geglu_exact", "reglu"]
Biases = Literal["all", "no_keys", "no_qkv", "attention", "qkv", "feed", "norms", "none"]
Part = Literal["qkv", "qv", "o", "feed", "norm"]
# The parts of a layer that carry biases; qv: queries and values without keys, a part of qkv.
BIASES: dict[Biases, tuple[Part, ...]] = {
    "all": ("qkv", "o", "feed", "norm"),
    "no_keys": ("qv", "o", "feed", "norm"),
    "no_qkv": ("o", "feed", "norm"),
    "attention": ("qkv", "o", "norm"),
    "qkv": ("qkv", "norm"),
    "feed": ("feed", "norm"),
    "norms": ("norm",),
    "none": (),
}


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Disentangled:
    """Disentangled attention (He et al. 2021, DeBERTa): scores of content with relative positions.

    Each distance has a vector, which the projections of queries and keys make a query and a key.

    Args:
        buckets ... norm: the fields below; `jaxgen train --keys` lists them as
            model.disentangled.*.

    >>> jaxgen.Disentangled(buckets=256, distance=512).rows
    512
    """

    buckets: int | None = option(
        "distances told apart on each side; the far half of them grow as logarithms; null: all up "
        "to distance",
        None,
    )
    distance: int = option("from here on all distances share a bucket", 512)
    terms: tuple[Term, ...] = option(
        "scores that are added: of queries with positions, of keys with positions",
        ("query", "key"),
    )
    keys: Tables = option(
        "projections of the vectors: those of the content (shared), or own", "shared"
    )
    norm: TableNorm = option("norm: a norm over the vectors", "none")

    def __post_init__(self) -> None:
        if self.buckets is not None and self.buckets < 4:
            raise ConfigError(f"disentangled.buckets={self.buckets} must be at least 4")
        if self.distance <= (self.buckets or 2) // 2 + 1:
            raise ConfigError(
                f"disentangled.distance={self.distance} must be above the distances that have a "
                f"bucket each, {(self.buckets or 2) // 2 + 1}"
            )
        if not self.terms or len(set(self.terms)) != len(self.terms):
            raise ConfigError(f"disentangled.terms={list(self.terms)}: give query, key, or both")

    @property
    def span(self) -> int:
        """Vectors of each side."""
        return self.buckets or self.distance

    @property
    def rows(self) -> int:
        """Vectors in all."""
        return 2 * self.span


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Embed:
    """How tokens become vectors, and the tables beside theirs.

    Args:
        scale ... project: the fields below; `jaxgen train --keys` lists them as model.embed.*.

    >>> jaxgen.preset("bert-base").embed == jaxgen.Embed(norm="norm", types=2)
    True
    """

    scale: Scale | float = option(
        "token vectors times one, the root of d_model, or a number", "one"
    )
    norm: EmbedNorm = option(
        "norm: between embeddings and layers; first: there, and the first layer has no norm of its "
        "own before attention (ModernBERT); tokens: before positions are added, except in the "
        "encoder of two towers",
        "none",
    )
    types: int = option("rows of a table of token types (BERT's segments); 0: none", 0)
    offset: int = option("positions learned, sinusoid_t2t: where a text's positions begin", 0)
    width: int | None = option(
        "of the tables, which a projection makes d_model; null: d_model", None
    )
    project: Project = option(
        "with width: what is projected: the sum of all, behind its norm, with a bias (ALBERT), or "
        "the token vectors (OPT)",
        "sum",
    )

    def __post_init__(self) -> None:
        for name in ("types", "offset"):
            if getattr(self, name) < 0:
                raise ConfigError(f"embed.{name}={getattr(self, name)} must be 0 or more")
        if self.width is not None and self.width < 1:
            raise ConfigError(f"embed.width={self.width} must be at least 1")
        if self.width is None and self.project != "sum":
            raise ConfigError(f"embed.project={self.project} has no effect: embed.width is null")
        if not isinstance(self.scale, str) and not self.scale > 0:
            raise ConfigError(f"embed.scale={self.scale} must be greater than 0")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class PerLayer:
    """Vectors of tokens for each layer beside those of the residual stream (Gemma 3n, 2025).

    A layer adds what a projection of the stream lets through of its own vectors; these are looked
    up, and projected from the token's vector in the stream.

    Args:
        width ... vocab_size: the fields below; `jaxgen train --keys` lists them as
            model.per_layer.*.

    >>> config = jaxgen.ModelConfig(vocab_size=64, layers=3, d_model=32, heads=4,
    ...                             per_layer=jaxgen.PerLayer(width=8, vocab_size=60))
    >>> jaxgen.abstract(config)["per_layer"]["tokens"].shape  # a token's vectors of all layers
    (60, 24)
    """

    width: int = option("of a token's vector in a layer", 256)
    vocab_size: int | None = option(
        "token ids that have such vectors, the first; others have those of id 0; null: all", None
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ConfigError(f"per_layer.{name}={value} must be at least 1")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Residual:
    """What is around the sublayers of a layer beside their sum with the residual stream.

    Args:
        streams ... gain: the fields below; `jaxgen train --keys` lists them as model.residual.*.

    >>> config = jaxgen.ModelConfig(vocab_size=64, layers=2, d_model=32, heads=4,
    ...                             residual=jaxgen.Residual(streams=4))
    >>> jaxgen.abstract(config)["layers"]["streams"]["predict"].shape
    (2, 16, 4)
    """

    streams: int = option(
        "residual streams; a layer reads the first, predicts all, and corrects all by what it "
        "made of the first (AltUp, Baykal et al. 2023)",
        1,
    )
    clip: float | None = option(
        "while training, the coefficients that predict and correct are cut to this size", None
    )
    laurel: int | None = option(
        "rank of a second way around attention, which is averaged with it (LAuReL, Menghani et "
        "al. 2024); null: none",
        None,
    )
    gain: Gain = option("learned: a layer's output times one learned number", "none")

    def __post_init__(self) -> None:
        for name in ("streams", "clip", "laurel"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"residual.{name}={value} must be greater than 0")
        if self.clip is not None and self.streams == 1:
            raise ConfigError(f"residual.clip={self.clip} has no effect: residual.streams=1")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class HeadLayer:
    """What stands between hidden states and the last projection of an encoder's head.

    Args:
        kind ... pool: the fields below; `jaxgen train --keys` lists them as model.head_layer.*.

    >>> jaxgen.preset("roberta-base").replace(head="classes", classes=2).head_kind
    'dense'
    """

    kind: HeadLayerKind | None = option(
        "nothing, a dense layer, or one with a norm behind it; null: as BERT has it (mlm: norm; "
        "classes, pooled: dense; else none)",
        None,
    )
    activation: HeadActivation | None = option(
        "of the dense layer; null: head=mlm: as feed, else tanh", None
    )
    bias: HeadBias = option("of the dense layer", "bias")
    pool: Pool = option(
        "head=classes, pooled: of the first token, the last one, or the mean of all", "first"
    )


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Scores:
    """What is done to attention scores on their way to probabilities.

    Args:
        query_scalar ... dropout: the fields below; `jaxgen train --keys` lists them as
            model.scores.*.

    >>> jaxgen.preset("gemma-2-2b").scores == jaxgen.Scores(query_scalar=256.0, cap=50.0)
    True
    """

    query_scalar: float | None = option("divided by its square root; null: by head_dim's", None)
    multiplier: float | None = option("times this number instead; null: see query_scalar", None)
    by_layer: ByLayer = option("inverse: also divided by the layer's number, from 1", "same")
    cap: float | None = option("soft cap: cap * tanh(score / cap)", None)
    growth: float | None = option(
        "queries at position p times 1 + growth * ln(1 + p // growth_span)", None
    )
    growth_span: int | None = option("tokens", None)
    growth_first: int = option("the position p of the first token", 0)
    growth_in: GrowthIn = option("layers whose queries grow: all, or those without rotation", "all")
    alibi: Alibi = option(
        "positions=alibi: added to scores; scaled: before these are scaled, and rounded to "
        "bfloat16 (Falcon)",
        "plain",
    )
    sinks: Sinks = option("learned: each head may attend to nothing, at a learned score", "none")
    dropout: float | None = option("on probabilities; null: as model.dropout", None)
    gate: OutputGate = option(
        "sigmoid: what a head read is multiplied by the sigmoid of a projection of its input",
        "none",
    )

    def __post_init__(self) -> None:
        for name in ("query_scalar", "multiplier", "cap", "growth", "growth_span"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"scores.{name}={value} must be greater than 0")
        if self.query_scalar is not None and self.multiplier is not None:
            raise ConfigError(
                f"scores.query_scalar={self.query_scalar} has no effect with "
                f"scores.multiplier={self.multiplier}; remove one of them"
            )
        if (self.growth is None) != (self.growth_span is None):
            raise ConfigError(
                f"scores.growth={self.growth} with scores.growth_span={self.growth_span}: give "
                f"both, or none"
            )
        for name in ("growth_first", "growth_in"):
            value = getattr(self, name)
            if self.growth is None and value != type(self).__dataclass_fields__[name].default:
                raise ConfigError(f"scores.{name}={value} has no effect: scores.growth=None")
        if self.growth_first < 0:
            raise ConfigError(f"scores.growth_first={self.growth_first} must be 0 or more")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"scores.dropout={self.dropout} must be in [0, 1)")

    def check(self, config: Any) -> None:
        """Raise ConfigError where a setting has no effect in a model of this config."""
        if self.alibi != "plain" and config.positions != "alibi":
            raise ConfigError(
                f"scores.alibi={self.alibi} has no effect: positions={config.positions}"
            )
        if self.growth_in == "unturned" and all(map(config.turns, config.pattern)):
            raise ConfigError(
                f"scores.growth_in={self.growth_in} has no effect: no kind of layers has "
                f"positions=none"
            )
