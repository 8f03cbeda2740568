"""The group of a ModelConfig that says what its experts are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError
from jaxgen.settings import option

Router = Literal["softmax", "sigmoid", "sparsemixer"]
Normalise = Literal["all", "chosen"]
BalanceOver = Literal["layer", "model"]
Weigh = Literal["output", "input"]
Bias = Literal["none", "bias"]
Gate = Literal["none", "sigmoid"]
Norms = Literal["none", "own"]


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in the place of the feed-forward (Shazeer et al. 2017), drop-less.

    A router scores the experts for each token, which goes to the best of them; their outputs are
    added, each times its weight. Raises ConfigError for what can't be.

    Args:
        number ... norms: the fields below; `jaxgen train --keys` lists them as
            model.experts.*.

    >>> experts = jaxgen.Experts(number=8, active=2, balance=0.01)
    >>> config = jaxgen.ModelConfig(vocab_size=64, layers=2, d_model=64, heads=4, experts=experts)
    >>> jaxgen.abstract(config)["layers"]["experts"]["up"].shape  # layers, experts, D, F
    (2, 8, 64, 256)
    """

    number: int = option("experts of a layer; 0: none, one feed-forward for all tokens", 0)
    active: int = option("experts of a token", 2)
    d_ff: int | None = option("width of an expert; null: as model.d_ff", None)
    router: Router = option(
        "scores: softmax over the experts; sigmoid of each; sparsemixer: two experts, each by a "
        "softmax over those close to it",
        "softmax",
    )
    normalise: Normalise = option(
        "the weights of a token's experts: its scores (all), or so that they sum to 1 (chosen)",
        "chosen",
    )
    scale: float = option("of all weights", 1.0)
    weigh: Weigh = option("what is multiplied by an expert's weight", "output")
    groups: int = option("into which experts are cut, in order", 1)
    active_groups: int = option("groups of a token, of which its experts are", 1)
    router_bias: Bias = option("bias: added to the router's logits", "none")
    choice_bias: Bias = option(
        "bias: added to scores for the choice alone; training moves it against uneven load", "none"
    )
    balance_rate: float = option("choice_bias: how far a step moves it", 1e-3)
    balance: float = option("weight of the load-balancing loss (Fedus et al. 2021)", 0.0)
    balance_over: BalanceOver = option(
        "where that loss wants even load: in each layer, or in all layers together (model), as "
        "transformers counts",
        "layer",
    )
    z: float = option("weight of logsumexp(router logits)^2 in the loss", 0.0)
    shared: int = option("width of an expert that every token has beside its own; 0: none", 0)
    shared_gate: Gate = option("sigmoid: a gate on what the shared expert adds", "none")
    first_dense: int = option("layers at the beginning without experts", 0)
    norms: Norms = option(
        "own: router and experts read the stream, each behind a norm of its own; so do what the "
        "experts add and what the shared one adds; and experts have learned gains (Gemma 4)",
        "none",
    )

    def __post_init__(self) -> None:
        fresh = type(self).__dataclass_fields__
        if self.number == 0:
            for name, value in vars(self).items():
                if value != fresh[name].default:
                    raise ConfigError(f"experts.{name}={value} has no effect: experts.number=0")
            return
        for name in ("number", "active", "groups", "active_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"experts.{name}={getattr(self, name)} must be at least 1")
        for name in ("shared", "first_dense", "balance", "z"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"experts.{name}={getattr(self, name)} must be 0 or more")
        for name in ("scale", "balance_rate", "d_ff"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"experts.{name}={value} must be greater than 0")
        if self.number % self.groups:
            raise ConfigError(
                f"experts.number={self.number} is not a multiple of experts.groups={self.groups}"
            )
        if self.active_groups > self.groups:
            raise ConfigError(
                f"experts.active_groups={self.active_groups} is more than "
                f"experts.groups={self.groups}"
            )
        there = self.number // self.groups * self.active_groups
        if self.active > there:
            raise ConfigError(
                f"experts.active={self.active} is more than the {there} experts that a token can "
                f"choose from"
            )
        if self.router == "sigmoid" and self.groups > 1 and self.number // self.groups < 2:
            raise ConfigError(
                f"experts.groups={self.groups} leaves a group one expert; with router=sigmoid a "
                f"group scores by its best two"
            )
        if self.router == "sparsemixer":
            self._check_sparsemixer()
        if self.shared_gate != "none" and not self.shared:
            raise ConfigError(f"experts.shared_gate={self.shared_gate} has no effect: shared=0")
        if self.choice_bias == "none" and self.balance_rate != fresh["balance_rate"].default:
            raise ConfigError(
                f"experts.balance_rate={self.balance_rate} has no effect: choice_bias=none"
            )

        if self.balance_over != fresh["balance_over"].default and not self.balance:
            raise ConfigError(f"experts.balance_over={self.balance_over} has no effect: balance=0")

    def _check_sparsemixer(self) -> None:
        if self.active != 2:
            raise ConfigError(
                f"experts.active={self.active}: router=sparsemixer chooses 2 experts; give active=2"
            )
        fresh = type(self).__dataclass_fields__
        for name in ("normalise", "scale", "groups", "choice_bias"):
            if (value := getattr(self, name)) != fresh[name].default:
                raise ConfigError(f"experts.{name}={value} has no effect: router=sparsemixer")

    def check_in(self, config: Any) -> None:
        """Raise ConfigError if a ModelConfig has no place for the experts, or for dense layers."""
        if not self.number:
            for name, kind in config.kinds.items():
                if kind.feed is not None:
                    raise ConfigError(f"kinds.{name}.feed={kind.feed} needs experts.number")
            return
        period = len(config.pattern)
        if config.topology == "encoder_decoder":
            raise ConfigError("experts need one tower, but topology=encoder_decoder has two")
        if self.first_dense % period or self.first_dense >= config.layers:
            raise ConfigError(
                f"experts.first_dense={self.first_dense} must be a multiple of the {period} layers "
                f"of pattern, and less than layers={config.layers}"
            )
        if not any(self.are_in(config, name) for name in config.pattern):
            raise ConfigError(f"experts.number={self.number} has no effect: all kinds are dense")

    def are_in(self, config: Any, kind: str) -> bool:
        """Return whether layers of a kind, behind the first dense ones, have experts."""
        own = config.kinds.get(kind)
        return bool(self.number) and (own is None or own.feed != "dense")

    @property
    def weight_at_first(self) -> float:
        """What the weights of a token's experts sum to where a router knows nothing yet."""
        each = {"softmax": 1 / self.number, "sigmoid": 0.5, "sparsemixer": 1.0}[self.router]
        if self.router != "sparsemixer" and self.normalise == "chosen":
            each = 1 / self.active
        return self.scale * self.active * each

    def width(self, d_ff: int) -> int:
        """Return the width of one expert, of the config's feed-forward width."""
        return self.d_ff or d_ff

    def widths(self, d_ff: int) -> tuple[int, int]:
        """Return feed-forward widths of a layer: all that a token goes through, all there is."""
        if not self.number:
            return d_ff, d_ff
        width = self.width(d_ff)
        return self.active * width + self.shared, self.number * width + self.shared
