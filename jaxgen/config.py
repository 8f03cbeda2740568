"""What a model is: one frozen, hashable record that every floor may read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxgen.errors import ConfigError
from jaxgen.settings import option

Norm = Literal["layer", "rms"]
NormAt = Literal["pre", "post", "both"]
Positions = Literal["learned", "rope", "sinusoid", "none"]
Feed = Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu"]
Biases = Literal["all", "attention", "qkv", "none"]
Output = Literal["tied", "untied"]
Layer = Literal["global", "local"]
Remat = Literal["none", "dots", "full"]
DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Transformer's architecture and numerics; raises ConfigError naming the field at fault.

    The GPT-2 defaults (Radford et al. 2019) are the field defaults. `pattern` repeats over the
    depth: ("local", "global") alternates sliding-window and full attention.
    """

    vocab_size: int | None = option("rows of the embedding; null: a run asks its tokenizer", None)
    context: int = option("longest sequence, in tokens", 1024)
    layers: int = option("depth", 12)
    d_model: int = option("width of the residual stream", 768)
    heads: int = option("query heads", 12)
    kv_heads: int | None = option("key/value heads (grouped-query attention); null: as heads", None)
    head_dim: int | None = option("width of one head; null: d_model / heads", None)
    d_ff: int | None = option("feed-forward width; null: 4 d_model", None)
    norm: Norm = option("layer: LayerNorm; rms: RMSNorm", "layer")
    norm_at: NormAt = option("pre, post, or both sides of a sublayer", "pre")
    norm_epsilon: float = option("added to the variance", 1e-5)
    positions: Positions = option("how order is told", "learned")
    rope_theta: float = option("rotary base wavelength", 10000.0)
    feed: Feed = option("feed-forward activation; swiglu and geglu are gated", "gelu_tanh")
    biases: Biases = option("which projections (and layer norms) carry biases", "all")
    output: Output = option("tied: logits through the embedding table", "tied")
    score_cap: float | None = option("soft cap of attention scores: cap * tanh(score / cap)", None)
    logit_cap: float | None = option("soft cap of the logits", None)
    pattern: tuple[Layer, ...] = option("layer kinds, repeated over the depth", ("global",))
    window: int | None = option("tokens a local layer sees, itself included", None)
    dropout: float = option("on embeddings, attention probabilities and sublayer outputs", 0.0)
    init_std: float = option("of normal initialisation; residual outputs: / sqrt(2 layers)", 0.02)
    param_dtype: DType = option("how parameters are stored", "float32")
    compute_dtype: DType = option(
        "how products are computed; norms and softmax stay float32", "float32"
    )
    remat: Remat = option("what backward recomputes: none, all but matmuls (dots), or full", "none")
    unroll: int = option("layers compiled in line per scan step; all of them: no loop", 1)

    def __post_init__(self) -> None:
        sizes = ("layers", "d_model", "heads", "unroll")
        optional = ("vocab_size", "kv_heads", "head_dim", "d_ff", "window")
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
        if self.positions == "sinusoid" and self.d_model % 2:
            raise ConfigError(
                f"d_model={self.d_model} is odd; sinusoidal positions need an even one"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")
        if not self.pattern:
            raise ConfigError("pattern=() names no layer; write [global]")
        if "local" in self.pattern and self.window is None:
            raise ConfigError("pattern has local layers but window is null; give window in tokens")
        if "local" not in self.pattern and self.window is not None:
            raise ConfigError(f"window={self.window} has no effect: pattern has no local layer")
        for name in ("norm_epsilon", "rope_theta", "init_std", "score_cap", "logit_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} must be greater than 0")

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

    def windows(self) -> tuple[int | None, ...]:
        """Return the attention window of each layer of one period, None for global ones."""
        return tuple(self.window if kind == "local" else None for kind in self.pattern)

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with the given fields changed, checked again."""
        return replace(self, **changes)


def _divisors_near(number: int, wanted: int) -> str:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    below = max(d for d in divisors if d <= wanted) if wanted >= 1 else 1
    above = min((d for d in divisors if d >= wanted), default=number)
    return f"{below} or {above}"
