"""What a model is: one frozen, hashable record that every floor may read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError
from jaxgen.settings import option

Norm = Literal["layer", "rms", "rms_offset"]
NormAt = Literal["pre", "post", "both"]
Positions = Literal["learned", "rope", "sinusoid", "relative", "none"]
Topology = Literal["decoder", "encoder", "encoder_decoder"]
EmbedNorm = Literal["none", "norm"]
OutputBias = Literal["none", "bias"]
Head = Literal["lm", "mlm", "classes", "token_classes", "spans", "pooled", "none"]
Prompt = Literal["back", "both"]
Feed = Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Biases = Literal["all", "attention", "qkv", "none"]
Scaling = Literal["none", "linear", "dynamic", "llama3", "yarn"]
# What each kind of rotary scaling reads.
SCALES: dict[Scaling, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_context"),
    "llama3": ("factor", "original_context", "low", "high"),
    "yarn": ("factor", "original_context", "low", "high", "attention"),
}
HeadNorm = Literal["none", "head"]
Scale = Literal["one", "root"]
Output = Literal["tied", "untied"]
Layer = Literal["global", "local"]
Remat = Literal["none", "dots", "full"]
DType = Literal["float32", "bfloat16", "float16"]
UNLIMITED = 1 << 20  # tokens; stands for no limit, and is beyond what a machine can hold
Weights = Literal["plain", "int8"]  # as decoding reads them; no field, for no model is one or other


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary wavelengths are stretched for a longer context; raises ConfigError if it can't be.

    linear (Chen et al. 2023): all of them. dynamic (NTK-aware): none in texts up to
    `original_context`, in longer ones the more the longer the text is. llama3 (Meta 2024) and yarn
    (Peng et al. 2023): those that turn at most `low` times in `original_context`, none that turns
    more than `high` times, and a mixture in between.
    """

    kind: Scaling = option(
        "which wavelengths are stretched: none, all (linear, dynamic), the long", "none"
    )
    factor: float = option("by how much", 1.0)
    original_context: int | None = option(
        "dynamic, llama3, yarn: tokens of the context before", None
    )
    low: float = option("llama3, yarn: waves with fewer turns are stretched in full", 1.0)
    high: float = option("llama3 (4), yarn (32): waves with more turns are left alone", 4.0)
    attention: float | None = option(
        "yarn: factor of rotated queries and keys; null: 0.1 ln(factor) + 1", None
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            fresh = value == type(self).__dataclass_fields__[name].default
            if not fresh and name not in ("kind", *SCALES[self.kind]):
                raise ConfigError(
                    f"rope_scaling.{name}={value} has no effect with kind={self.kind}; remove it"
                )
        needed = "original_context" in SCALES[self.kind]
        if needed and (self.original_context is None or self.original_context < 1):
            raise ConfigError(
                f"rope_scaling.original_context={self.original_context} must be given with "
                f"kind={self.kind}: the tokens of the context before it was stretched"
            )
        if not self.factor > 0:
            raise ConfigError(f"rope_scaling.factor={self.factor} must be greater than 0")
        if not 0 < self.low < self.high:
            raise ConfigError(
                f"rope_scaling.low={self.low} must be greater than 0 and less than high={self.high}"
            )
        if self.attention is not None and not self.attention > 0:
            raise ConfigError(f"rope_scaling.attention={self.attention} must be greater than 0")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Transformer's architecture and numerics; raises ConfigError naming the field at fault.

    The GPT-2 defaults (Radford et al. 2019) are the field defaults. `pattern` repeats over the
    depth: ("local", "global") alternates sliding-window and full attention.

    Args:
        vocab_size ... unroll: the fields below, each with its meaning; `jaxgen train --keys` lists
            them as model.*.

    >>> config = jaxgen.ModelConfig(vocab_size=50257, norm="rms", positions="rope", feed="swiglu")
    >>> config.replace(kv_heads=4).K
    4
    """

    vocab_size: int | None = option("rows of the embedding; null: a run asks its tokenizer", None)
    topology: Topology = option(
        "decoder: GPT; encoder: BERT, sees both sides; encoder_decoder: T5", "decoder"
    )
    context: int = option("longest sequence, in tokens", 1024)
    layers: int = option("depth; of the decoder, if there are two towers", 12)
    encoder_layers: int | None = option("depth of the encoder of two; null: as layers", None)
    d_model: int = option("width of the residual stream", 768)
    heads: int = option("query heads", 12)
    kv_heads: int | None = option("key/value heads (grouped-query attention); null: as heads", None)
    head_dim: int | None = option("width of one head; null: d_model / heads", None)
    d_ff: int | None = option("feed-forward width; null: 4 d_model", None)
    norm: Norm = option(
        "layer: LayerNorm; rms: RMSNorm; rms_offset: RMSNorm, scale kept as its offset from 1",
        "layer",
    )
    norm_at: NormAt = option("pre, post, or both sides of a sublayer", "pre")
    norm_epsilon: float = option("added to the variance", 1e-5)
    positions: Positions = option("how order is told", "learned")
    position_offset: int = option("learned: rows of the table before position 0", 0)
    relative_buckets: int = option("relative: distances told apart", 32)
    relative_distance: int = option("relative: from here on all distances share a bucket", 128)
    rope_theta: float = option("rotary base wavelength", 10000.0)
    rope_theta_local: float | None = option(
        "that of local layers, then without scaling; null: as the global ones", None
    )
    rope_scaling: RopeScaling = option("stretched rotary wavelengths", RopeScaling())
    qk_norm: HeadNorm = option("head: norm over each head of queries and of keys", "none")
    query_scalar: float | None = option(
        "scores are divided by its square root; null: head_dim", None
    )
    embed_scale: Scale = option("token vectors times one, or the root of d_model", "one")
    embed_norm: EmbedNorm = option("norm: a norm between embeddings and layers", "none")
    token_types: int = option("rows of a table of token types (BERT's segments); 0: none", 0)
    feed: Feed = option("feed-forward activation; swiglu and geglu are gated", "gelu_tanh")
    biases: Biases = option("which projections (and layer norms) carry biases", "all")
    output: Output = option("tied: logits through the embedding table", "tied")
    output_scale: Scale = option("hidden states before logits: / one, or / sqrt(d_model)", "one")
    output_bias: OutputBias = option("bias: one learned number a token id", "none")
    head: Head = option(
        "lm: token logits; mlm: those of BERT; classes: of the text; spans: begin and end; "
        "pooled: BERT's vector of the text; none",
        "lm",
    )
    mlm_activation: Activation | None = option(
        "head=mlm: activation after its dense layer; null: as feed", None
    )
    prompt: Prompt = option(
        "both: a decoder's prompt sees itself from both sides (prefix LM); back: as all else",
        "back",
    )
    classes: int | None = option("head=classes: how many", None)
    score_cap: float | None = option("soft cap of attention scores: cap * tanh(score / cap)", None)
    logit_cap: float | None = option("soft cap of the logits", None)
    pattern: tuple[Layer, ...] = option("layer kinds, repeated over the depth", ("global",))
    window: int | None = option("tokens a local layer sees, itself included", None)
    dropout: float = option("on embeddings and sublayer outputs", 0.0)
    attention_dropout: float | None = option("on attention probabilities; null: as dropout", None)
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
        sizes = ("layers", "d_model", "heads", "relative_buckets", "relative_distance")
        optional = ("vocab_size", "encoder_layers", "kv_heads", "head_dim", "d_ff", "window")
        optional += ("classes", "unroll")
        for name in (*sizes, *(n for n in optional if getattr(self, n) is not None)):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.context < 2:
            raise ConfigError(
                f"context={self.context} must be at least 2: one token to read, one to write"
            )
        if self.head_dim is None and self.d_model % self.heads:
            raise ConfigError(
                f"d_model={self.d_model} is not a multiple of heads={self.heads}; "
                f"nearest that work: heads={_divisors_near(self.d_model, self.heads)}, "
                f"or set head_dim"
            )
        if self.heads % self.K:
            raise ConfigError(
                f"heads={self.heads} is not a multiple of kv_heads={self.K}; "
                f"nearest that work: kv_heads={_divisors_near(self.heads, self.K)}"
            )
        if self.positions == "rope" and self.H % 2:
            raise ConfigError(
                f"head_dim={self.H} is odd; rotary positions turn pairs, use an even one"
            )
        self._check_rope()
        self._check_relative()
        self._check_topology()
        if self.positions == "sinusoid" and self.d_model % 2:
            raise ConfigError(
                f"d_model={self.d_model} is odd; sinusoidal positions need an even one"
            )
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ConfigError(f"{name}={rate} must be in [0, 1)")
        if not self.pattern:
            raise ConfigError("pattern=() names no layer; write [global]")
        if "local" in self.pattern and self.window is None:
            raise ConfigError("pattern has local layers but window is null; give window in tokens")
        if "local" not in self.pattern and self.window is not None:
            raise ConfigError(f"window={self.window} has no effect: pattern has no local layer")
        for name in (
            *("norm_epsilon", "rope_theta", "rope_theta_local", "query_scalar"),
            *("init_std", "score_cap", "logit_cap"),
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} must be greater than 0")

    def _check_rope(self) -> None:
        if self.rope_scaling.kind != "none" and self.positions != "rope":
            raise ConfigError(
                f"rope_scaling.kind={self.rope_scaling.kind} needs positions=rope, "
                f"but positions={self.positions}"
            )
        if self.rope_theta_local is not None and (
            self.positions != "rope" or "local" not in self.pattern
        ):
            raise ConfigError(
                f"rope_theta_local={self.rope_theta_local} has no effect: it needs positions=rope "
                f"and local layers in pattern"
            )

    def _check_relative(self) -> None:
        fresh = type(self).__dataclass_fields__
        for name in ("relative_buckets", "relative_distance"):
            value = getattr(self, name)
            if self.positions != "relative" and value != fresh[name].default:
                raise ConfigError(f"{name}={value} has no effect: positions={self.positions}")
        if self.position_offset and self.positions != "learned":
            raise ConfigError(
                f"position_offset={self.position_offset} has no effect: positions={self.positions}"
            )
        if self.positions != "relative":
            return
        exact = self.relative_buckets // (4 if self.topology != "decoder" else 2)
        if exact < 1 or self.relative_distance <= exact:
            raise ConfigError(
                f"relative_buckets={self.relative_buckets} with "
                f"relative_distance={self.relative_distance}: give at least 4 buckets, and a "
                f"distance above the {exact} that have a bucket each"
            )

    def _check_topology(self) -> None:
        if self.encoder_layers is not None and self.topology != "encoder_decoder":
            raise ConfigError(
                f"encoder_layers={self.encoder_layers} has no effect: topology={self.topology}"
            )
        if (self.classes is not None) != (self.head in ("classes", "token_classes")):
            raise ConfigError(
                f"head={self.head} with classes={self.classes}: classes is given with "
                f"head=classes or head=token_classes, and only there"
            )
        if self.head == "token_classes" and self.topology == "encoder_decoder":
            raise ConfigError(
                "head=token_classes reads each token of one tower: topology=encoder_decoder has "
                "two; give topology=encoder"
            )
        if self.head in ("mlm", "pooled") and self.topology != "encoder":
            raise ConfigError(
                f"head={self.head} reads from both sides, so it needs topology=encoder, "
                f"but topology={self.topology}"
            )
        if self.mlm_activation is not None and self.head != "mlm":
            raise ConfigError(
                f"mlm_activation={self.mlm_activation} has no effect: head={self.head}"
            )
        if self.head == "mlm" and self.mlm_activation is None and self.feed in ("swiglu", "geglu"):
            raise ConfigError(
                f"head=mlm has one dense layer, which feed={self.feed} does not fit; give "
                f"mlm_activation, such as gelu"
            )
        if self.prompt == "both" and self.topology != "decoder":
            raise ConfigError(f"prompt=both has no effect: topology={self.topology}")
        for name in ("token_types", "position_offset"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")

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
        """Head width."""
        return self.head_dim or self.d_model // self.heads

    @property
    def F(self) -> int:  # noqa: N802
        """Feed-forward width."""
        return self.d_ff or 4 * self.d_model

    @property
    def longest(self) -> int:
        """Tokens of the longest row it reads: context, which sets no limit to relative positions.

        T5 (Raffel et al. 2020) shares one bias among all distances beyond the farthest it tells
        apart, so texts longer than those of its training can be read.
        """
        return UNLIMITED if self.positions == "relative" else self.context

    @property
    def head_activation(self) -> str:
        """Activation of the dense layer of head=mlm."""
        return self.mlm_activation or self.feed

    @property
    def score_dropout(self) -> float:
        """Dropout of attention probabilities."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    def windows(self) -> tuple[int | None, ...]:
        """Return the attention window of each layer of one period, None for global ones."""
        return tuple(self.window if kind == "local" else None for kind in self.pattern)

    def rope(self, kind: Layer) -> tuple[float, RopeScaling]:
        """Return (base wavelength, scaling) of the layers of a kind."""
        if kind == "local" and self.rope_theta_local is not None:
            return self.rope_theta_local, RopeScaling()
        return self.rope_theta, self.rope_scaling

    def encoder(self) -> ModelConfig:
        """Return what the encoder of an encoder-decoder is, taken by itself."""
        depth = self.encoder_layers or self.layers
        return self.replace(
            topology="encoder", layers=depth, encoder_layers=None, head="none", classes=None
        )

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with the given fields changed, checked again."""
        return replace(self, **changes)


def _divisors_near(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = max(d for d in divisors if d <= wanted) if wanted >= 1 else 1
    above = min((d for d in divisors if d >= wanted), default=number)
    return f"{below} or {above}"
