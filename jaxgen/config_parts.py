"""Groups of a ModelConfig about what is around its layers: embeddings, distances, heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError
from jaxgen.settings import option

Scale = Literal["one", "root"]
EmbedNorm = Literal["none", "norm", "first", "tokens"]
Project = Literal["sum", "tokens"]
HeadLayerKind = Literal["none", "dense", "norm"]
HeadActivation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "tanh"]
HeadBias = Literal["bias", "none"]
Pool = Literal["first", "mean"]
Term = Literal["query", "key"]
TableNorm = Literal["none", "norm"]
Tables = Literal["shared", "own"]


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
    pool: Pool = option("head=classes, pooled: of the first token, or the mean of all", "first")
