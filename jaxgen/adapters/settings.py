"""Which adapter is trained, where, and how large: the knobs of the `adapter` section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError
from jaxgen.settings import changed, option

Kind = Literal["none", "lora", "rslora", "dora", "ia3", "prompt", "prefix"]
ALL_LINEAR = "all-linear"
_WEIGHTS = ("targets", "layers", "bias", "save", "base")
_LOW_RANK = (*_WEIGHTS, "rank", "alpha", "rank_pattern", "alpha_pattern", "dropout", "initial")
# kind -> the knobs that it has
READ: dict[str, tuple[str, ...]] = {
    "none": (),
    **dict.fromkeys(("lora", "rslora", "dora"), _LOW_RANK),
    "ia3": (*_WEIGHTS, "inputs"),
    **dict.fromkeys(("prompt", "prefix"), ("tokens", "base")),
}


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """An adapter of a model that stays as it is; raises ConfigError naming the field at fault."""

    kind: Kind = option(
        "none: all parameters are trained; lora (Hu et al. 2022); rslora: scaled by the root of "
        "the rank (Kalajdzievski 2023); dora: with magnitudes (Liu et al. 2024); ia3: factors of "
        "outputs (Liu et al. 2022); prompt: vectors before those of a text (Lester et al. 2021); "
        "prefix: keys and values before those of a text (Li and Liang 2021)",
        "none",
    )
    targets: tuple[str, ...] = option(
        "globs of the paths of weights that get one; all-linear: all matrices of layers",
        (ALL_LINEAR,),
    )
    rank: int = option("width between the two factors", 8)
    alpha: float = option("the product of the factors is scaled by alpha / rank", 16.0)
    rank_pattern: dict[str, int] = option("ranks of their own, by glob of a path", {})
    alpha_pattern: dict[str, float] = option("alphas of their own, by glob of a path", {})
    layers: tuple[int, ...] | None = option("numbers of the layers that get one; null: all", None)
    inputs: tuple[str, ...] = option(
        "ia3: globs of the targets whose inputs get the factors instead", ("*/down",)
    )
    dropout: float = option("probability of zeroing an input of the first factor", 0.0)
    initial: Literal["kaiming", "gaussian"] = option(
        "of the first factor; the second is 0", "kaiming"
    )
    bias: Literal["none", "all", "targets"] = option(
        "biases that are trained as well: none, all, those of the targets", "none"
    )
    save: tuple[str, ...] = option("globs of parameters that are trained and saved whole", ())
    tokens: int = option("prompt, prefix: virtual tokens before those of a text", 20)
    base: Literal["plain", "int8", "int4"] = option(
        "numbers of the weights beneath: as the model has them, rounded to a byte, or to half of "
        "one (NF4 with quantised scales: QLoRA, Dettmers et al. 2023)",
        "plain",
    )

    @property
    def num_virtual(self) -> int:
        """Virtual tokens of this kind; 0 for one that has none."""
        return self.tokens if "tokens" in READ[self.kind] else 0

    def __post_init__(self) -> None:
        if not self.targets and self.kind != "none":
            raise ConfigError(f"targets=[] leaves nothing to train; give {ALL_LINEAR} or paths")
        ranks = {"rank": self.rank} | {f"rank_pattern.{k}": r for k, r in self.rank_pattern.items()}
        for name, rank in ranks.items():
            if rank < 1:
                raise ConfigError(f"{name}={rank} must be at least 1")
        alphas = {f"alpha_pattern.{k}": a for k, a in self.alpha_pattern.items()}
        for name, alpha in ({"alpha": self.alpha} | alphas).items():
            if not alpha > 0:
                raise ConfigError(f"{name}={alpha} must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be in [0, 1)")
        if self.tokens < 1:
            raise ConfigError(f"tokens={self.tokens} must be at least 1")
        for name in sorted({*changed(self)} - {"kind", *READ[self.kind]}):
            other = "give a kind, such as lora" if self.kind == "none" else "leave it out"
            raise ConfigError(
                f"{name}={getattr(self, name)} has no effect with kind={self.kind}; {other}"
            )
