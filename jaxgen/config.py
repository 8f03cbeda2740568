"""What a model is: one frozen, hashable record that every floor may read."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.config_checks import (
    check_block,
    check_embed,
    check_encoder,
    check_head_layer,
    check_kinds,
    check_positions,
    check_residual,
    check_rope,
    check_sizes,
    check_topology,
)
from jaxgen.config_experts import Experts
from jaxgen.config_groups import (
    GROUPS,
    RENAMED,
    SIZES,
    Delta,
    Latent,
    LayerKind,
    Mixer,
    Reach,
    Relative,
    Rope,
    Towers,
    in_groups,
)
from jaxgen.config_groups import RopeScaling as RopeScaling
from jaxgen.config_media import Stem, Vision
from jaxgen.config_parts import (
    BIASES,
    Biases,
    Disentangled,
    Embed,
    Feed,
    HeadLayer,
    HeadLayerKind,
    NormAt,
    Part,
    PerLayer,
    Residual,
    Scale,
    Scores,
)
from jaxgen.errors import ConfigError, nearest
from jaxgen.settings import option

Norm = Literal["layer", "rms", "rms_offset", "rms_unit"]
Parallel = Literal["none", "one_norm", "two_norms"]
Positions = Literal[
    "learned",
    "rope",
    "sinusoid",
    "sinusoid_t2t",
    "relative",
    "learned_relative",
    "disentangled",
    "alibi",
    "none",
]
Topology = Literal["decoder", "encoder", "encoder_decoder"]
OutputBias = Literal["none", "bias"]
Head = Literal["lm", "mlm", "classes", "token_classes", "spans", "pooled", "none"]
Prompt = Literal["back", "both"]
QKNorm = Literal["none", "head", "heads", "each", "unit", "qkv"]
LayerWeights = Literal["own", "shared"] | int
Output = Literal["tied", "untied"]
Remat = Literal["none", "dots", "full"]
DType = Literal["float32", "bfloat16", "float16"]
UNLIMITED = 1 << 20  # tokens; stands for no limit, and is beyond what a machine can hold
Weights = Literal["plain", "int8", "stored"]  # as decoding reads them: no field of a model


@arguments.renamed(lambda given: in_groups(given, GROUPS))
@arguments.checked
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Transformer's architecture and numerics; raises ConfigError naming the field at fault.

    The GPT-2 defaults (Radford et al. 2019) are the field defaults. `pattern` repeats over the
    depth: ("local", "global") alternates sliding-window and full attention; `kinds` says what other
    kinds of layers do differently.

    Args:
        vocab_size ... unroll: the fields below, each with its meaning; `jaxgen train --keys` lists
            them as model.*.

    >>> config = jaxgen.ModelConfig(vocab_size=50257, norm="rms", positions="rope", feed="swiglu")
    >>> config.replace(kv_heads=4, rope=jaxgen.Rope(theta=5e5)).K
    4
    """

    vocab_size: int | None = option("rows of the embedding; null: a run asks its tokenizer", None)
    topology: Topology = option(
        "decoder: GPT; encoder: BERT, sees both sides; encoder_decoder: T5", "decoder"
    )
    context: int = option("longest sequence, in tokens", 1024)
    layers: int = option("depth; of the decoder, if there are two towers", 12)
    layer_weights: LayerWeights = option(
        "shared: all periods of the pattern have one set of parameters (ALBERT); a number: so many "
        "sets, each of as many periods in turn",
        "own",
    )
    towers: Towers = option("with topology=encoder_decoder", Towers())
    d_model: int = option("width of the residual stream", 768)
    heads: int = option("query heads", 12)
    kv_heads: int | None = option("key/value heads (grouped-query attention); null: as heads", None)
    head_dim: int | None = option("width of one head; null: d_model / heads", None)
    d_ff: int | None = option("feed-forward width; null: 4 d_model", None)
    norm: Norm = option(
        "layer: LayerNorm; rms: RMSNorm, its scale less 1 (rms_offset) or none (rms_unit)", "layer"
    )
    norm_at: NormAt = option(
        "pre: of a sublayer's input; out: of its output; both; post: of the sum with its input",
        "pre",
    )
    parallel: Parallel = option(
        "attention and feed-forward read the same stream: behind one norm, or each behind its own",
        "none",
    )
    residual_scale: float = option("what sublayers add to the stream is multiplied by it", 1.0)
    residual: Residual = option("around a layer's sublayers", Residual())
    norm_epsilon: float = option("added to the variance", 1e-5)
    positions: Positions = option(
        "how order is told; sinusoid: waves of 1 to 10000 positions, of which sinusoid_t2t "
        "(tensor2tensor's) has the longest as well",
        "learned",
    )
    relative: Relative = option("with positions=relative, learned_relative", Relative())
    disentangled: Disentangled = option("with positions=disentangled", Disentangled())
    rope: Rope = option("with positions=rope", Rope())
    qk_norm: QKNorm = option(
        "norm of queries and of keys: head: over each head, one scale for all; each: a scale for "
        "each head; heads: over all heads at once; unit: over each head after its rotation, with "
        "no scale, in layers that are not of positions=none; qkv: as head, and of values, with no "
        "scale",
        "none",
    )
    latent: Latent | None = option(
        "latent attention: keys and values of all heads from one vector; null: of their own", None
    )
    delta: Delta | None = option("of kinds of layers with mixer=delta; null: there are none", None)
    scores: Scores = option("attention scores", Scores())
    embed: Embed = option("how tokens become vectors", Embed())
    stem: Stem | None = option("what an encoder reads instead of tokens; null: tokens", None)
    vision: Vision | None = option("images in a decoder's prompts; null: it reads none", None)
    per_layer: PerLayer | None = option(
        "vectors of tokens that each layer has of its own; null: none", None
    )
    feed: Feed = option("feed-forward activation; swiglu and geglu are gated", "gelu_tanh")
    experts: Experts = option("a mixture of experts in the place of the feed-forward", Experts())
    biases: Biases = option("which projections (and norms) carry biases; no_keys: not keys'", "all")
    output: Output = option("tied: logits through the embedding table", "tied")
    output_scale: Scale | float = option(
        "hidden states before logits are divided by: one, the root of d_model, or a number", "one"
    )
    output_bias: OutputBias = option("bias: one learned number a token id", "none")
    head: Head = option(
        "lm: token logits; mlm: those of BERT; classes: of the text; spans: begin and end; "
        "pooled: BERT's vector of the text; none",
        "lm",
    )
    head_layer: HeadLayer = option("before the last projection of a head", HeadLayer())
    prompt: Prompt = option(
        "both: a decoder's prompt sees itself from both sides (prefix LM); back: as all else",
        "back",
    )
    classes: int | None = option("head=classes: how many", None)
    logit_cap: float | None = option("soft cap of the logits", None)
    pattern: tuple[str, ...] = option("layer kinds, repeated over the depth", ("global",))
    kinds: dict[str, LayerKind] = option("what layers of a kind do otherwise, by its name", {})
    window: int | None = option(
        "tokens that a layer with a window sees, itself included; of a chunk", None
    )
    dropout: float = option("on embeddings and sublayer outputs", 0.0)
    init_std: float = option("of normal initialisation; residual outputs: / sqrt(2 layers)", 0.02)
    param_dtype: DType = option("how parameters are stored", "float32")
    compute_dtype: DType = option(
        "how products are computed; norms and softmax stay float32", "float32"
    )
    remat: Remat = option("what backward recomputes: none, all but matmuls (dots), or full", "none")
    unroll: int | None = option(
        "layers unrolled per scan step; null: all, where that is faster, else 1", None
    )

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.latent is not None:
            self.latent.check(self)
        self.scores.check(self)
        if self.vision is not None:
            self.vision.check(self)
        check_positions(self)
        check_topology(self)
        check_head_layer(self)
        check_embed(self)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")
        check_kinds(self)
        check_rope(self)
        check_residual(self)
        check_block(self)
        self.experts.check_in(self)
        for name in ("norm_epsilon", "init_std", "logit_cap", "residual_scale", "output_scale"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not value > 0:
                raise ConfigError(f"{name}={value} must be greater than 0")
        check_encoder(self)

    @property
    def V(self) -> int:  # noqa: N802  the axis alphabet
        """Vocabulary; raises ConfigError while it is undecided."""
        if self.vocab_size is None:
            raise ConfigError("vocab_size is null; give the number of token ids")
        return self.vocab_size

    @property
    def K(self) -> int:  # noqa: N802
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def H(self) -> int:  # noqa: N802
        """Head width; of queries and keys, if values have one of their own."""
        if self.latent is not None:
            return self.latent.width
        return self.head_dim or self.d_model // self.heads

    @property
    def F(self) -> int:  # noqa: N802
        """Feed-forward width."""
        return self.d_ff or 4 * self.d_model

    @property
    def cached(self) -> tuple[int, int, int]:
        """What a cache holds for a token of a layer: heads, numbers of a key, and of a value."""
        if self.latent is not None:
            return 1, self.latent.kv_rank, self.latent.rope_width
        return self.K, self.H, self.H

    @property
    def leading(self) -> int:
        """Layers at the beginning that have trees of parameters of their own: whole periods."""
        first = min(len(self.pattern), self.layers) if self.embed.norm == "first" else 0
        return max(first, self.experts.first_dense)

    @property
    def weight_sets(self) -> int | None:
        """Sets of parameters that layers share; None: each layer has its own."""
        own = self.layer_weights
        return own if isinstance(own, int) else {"own": None, "shared": 1}[own]

    @property
    def longest(self) -> int:
        """Tokens of the longest row it reads: context, which sets no limit to relative positions.

        T5 (Raffel et al. 2020) shares one bias among all distances beyond the farthest it tells
        apart, so texts longer than those of its training can be read.
        """
        unlimited = self.positions in ("relative", "disentangled")
        return UNLIMITED if unlimited else self.context

    @property
    def embed_width(self) -> int:
        """Width of the tables of tokens, positions and token types."""
        return self.embed.width or self.d_model

    @property
    def memory_width(self) -> int:
        """Width of an encoder's last hidden states, which the decoder of two towers reads."""
        return self.towers.encoder_d_model or self.d_model

    @property
    def has_position_table(self) -> bool:
        """Whether positions have learned vectors, which are added to those of the tokens."""
        return self.positions in ("learned", "learned_relative")

    @property
    def has_relative(self) -> bool:
        """Whether scores have a bias for each bucket of distances."""
        return self.positions in ("relative", "learned_relative")

    @property
    def has_score_bias(self) -> bool:
        """Whether positions add to scores, which kernels must then be given."""
        return self.has_relative or self.positions in ("disentangled", "alibi")

    @property
    def head_kind(self) -> HeadLayerKind:
        """What stands before the last projection of the head."""
        if self.head_layer.kind is not None:
            return self.head_layer.kind
        if self.head in ("classes", "pooled") and self.topology != "decoder":
            return "dense"
        return "norm" if self.head == "mlm" else "none"

    @property
    def head_activation(self) -> str:
        """Activation of the dense layer of the head."""
        return self.head_layer.activation or (self.feed if self.head == "mlm" else "tanh")

    @property
    def score_dropout(self) -> float:
        """Dropout of attention probabilities."""
        return self.dropout if self.scores.dropout is None else self.scores.dropout

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied by, before what depends on the layer."""
        gain = self.rope.scaling.score_gain
        if self.scores.multiplier is not None:
            return self.scores.multiplier * gain
        parts = 1 + len(self.disentangled.terms) * (self.positions == "disentangled")
        return (parts * (self.scores.query_scalar or self.H)) ** -0.5 * gain

    def has_bias(self, part: Part) -> bool:
        """Return whether a part of the layers carries biases."""
        own = BIASES[self.biases]
        return part in own or (part == "qv" and "qkv" in own)

    def reach(self, kind: str) -> Reach:
        """Return which keys the layers of a kind see."""
        own = self.kinds[kind].reach if kind in self.kinds else None
        return own or ("window" if kind == "local" else "all")

    def mixer(self, kind: str) -> Mixer:
        """Return how tokens of the layers of a kind read earlier ones."""
        return self.kinds.get(kind, LayerKind()).mixer

    def shares_keys(self, kind: str) -> bool:
        """Return whether layers of a kind have keys and values of other layers, and no cache."""
        return self.kinds.get(kind, LayerKind()).keys_of is not None

    def are_read(self, kind: str) -> bool:
        """Return whether other layers have the keys and values of layers of a kind as well."""
        return any(other.keys_of == kind for other in self.kinds.values())

    def of_kind(self, kind: str) -> ModelConfig:
        """Return the config with the sizes that layers of a kind have."""
        own = self.kinds.get(kind, LayerKind())
        sizes = {name: getattr(own, name) for name in SIZES if getattr(own, name) is not None}
        if not sizes:
            return self
        found = copy(self)  # not `replace`: the sizes of other kinds are their own
        for name, value in sizes.items():
            object.__setattr__(found, name, value)
        return found

    def rope_of(self, kind: str) -> Rope | None:
        """Return the rotary positions of the layers of a kind; None: they have none."""
        own = self.kinds.get(kind, LayerKind())
        if (own.positions or self.positions) != "rope":
            return None
        return own.rope or self.rope

    def turns(self, kind: str) -> bool:
        """Return whether layers of a kind have the positions of the config."""
        return self.kinds.get(kind, LayerKind()).positions is None

    def encoder(self) -> ModelConfig:
        """Return what the encoder of an encoder-decoder, or of images, is, taken by itself."""
        if self.vision is not None:
            return ModelConfig(**self.vision.tower(self))
        norm = "norm" if self.embed.norm == "tokens" else self.embed.norm
        own: dict[str, Any] = {"embed": replace(self.embed, norm=norm)}
        if self.stem is not None:  # which has positions of its own
            own = {"embed": Embed(), "positions": "none", "context": max(self.stem.vectors, 2)}
        return self.replace(
            topology="encoder",
            towers=Towers(),
            **own,
            head="none",
            head_layer=HeadLayer(),
            classes=None,
            **self.towers.of_encoder,
        )

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with the given fields changed, checked again."""
        return replace(self, **in_groups(changes, GROUPS | vars(self)))

    @staticmethod
    def regrouped(given: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of a file with those in groups that are in one now."""
        return in_groups(given, {})

    def __getattr__(self, name: str) -> Any:
        """Return a setting that is now in a group under the name it had before."""
        if name == "rope_theta_local":
            own = self.kinds.get("local", LayerKind()).rope
            return None if own is None else own.theta
        if name not in RENAMED:
            raise AttributeError(f"ModelConfig has no {name!r}{nearest(name, vars(self))}")
        return attrgetter(".".join(RENAMED[name]))(self)

    def __hash__(self) -> int:
        return hash(tuple(map(_hashable, vars(self).values())))


def _hashable(value: Any) -> Any:
    return frozenset(value.items()) if isinstance(value, dict) else value
