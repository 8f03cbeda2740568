"""How private training is, and where it takes place: `train.privacy` and `train.federated`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxgen import arguments
from jaxgen.arguments import Range, above, at_least
from jaxgen.errors import ConfigError
from jaxgen.settings import changed, option

RESOLVED = ("expected", "seed", "solved_noise")  # filled in when a run begins


@arguments.checked(
    **dict.fromkeys(("epsilon", "noise_multiplier", "clip", "expected", "solved_noise"), above(0)),
    **dict.fromkeys(("delta", "quantile"), Range(0, 1, above=True, below=True)),
    seed=Range(0, 2**63, below=True),
)
@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """Differential privacy of training; raises ConfigError naming the field at fault."""

    epsilon: float | None = option(
        "budget, at which training stops; the noise is solved for; null, and no noise_multiplier: "
        "not private",
        None,
    )
    delta: float | None = option(
        "chance that the promise of epsilon fails; below 1 / number of units, such as 1e-6", None
    )
    noise_multiplier: float | None = option(
        "deviation of the noise in multiples of clip, instead of epsilon", None
    )
    clip: float = option("largest norm of one unit's gradient", 1.0)
    clipping: Literal["flat", "per_layer"] = option(
        "flat: the norm of all parameters; per_layer: clip / sqrt(n) for each of n weights", "flat"
    )
    quantile: float | None = option(
        "adapt clip to this quantile of the norms, such as 0.5 (Andrew et al. 2021); null: fixed",
        None,
    )
    method: Literal["auto", "ghost", "vmap"] = option(
        "ghost: norms without the gradients of each row, in two backward passes; vmap: a gradient "
        "for each row of a microbatch; auto: ghost where model and loss allow it",
        "auto",
    )
    unit: Literal["document", "file", "row", "user"] = option(
        "what the promise is about: a document or record; all of a file; a row of model.context + "
        "1 tokens; all of a user's text (data.user)",
        "document",
    )
    expected: float | None = option(
        "expected rows of a step; null: as many as rarely overflow train.batch", None
    )
    accountant: Literal["pld", "rdp"] = option("of dp-accounting; pld is tighter", "pld")
    seed: int | None = option(
        "of noise and sampling, a secret; null: drawn when the run begins", None
    )
    solved_noise: float | None = option(
        "the noise that epsilon was solved to, filled in when the run begins", None
    )

    def __post_init__(self) -> None:
        if not self.on:
            for name in changed(self):
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect without epsilon or "
                    f"noise_multiplier; give epsilon=8, for example, or remove it"
                )
            return
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ConfigError(
                f"epsilon={self.epsilon} and noise_multiplier={self.noise_multiplier} exclude each "
                f"other; remove one, which is then computed"
            )
        if self.delta is None:
            raise ConfigError("delta=null must be given with epsilon or noise_multiplier; try 1e-6")
        if self.clipping == "per_layer" and (self.method == "ghost" or self.quantile):
            other = "method=ghost" if self.method == "ghost" else f"quantile={self.quantile}"
            raise ConfigError(f"clipping=per_layer and {other} exclude each other; remove one")

    @property
    def on(self) -> bool:
        """Whether training is private."""
        return self.epsilon is not None or self.noise_multiplier is not None

    @property
    def noise(self) -> float:
        """The noise multiplier that runs; 1 where the one of epsilon isn't solved for yet."""
        return self.noise_multiplier or self.solved_noise or 1.0


@arguments.checked(
    clients=at_least(0),
    local_steps=at_least(1),
    learning_rate=above(0),
    proximal=at_least(0),
    secure=above(0),
)
@dataclass(frozen=True, kw_only=True)
class FederatedSettings:
    """Training at clients, whose parts are summed; raises ConfigError naming the field at fault."""

    clients: int = option(
        "users of a round, which is a step; they train at once (train.accumulate: in groups), and "
        "train.optimizer=sgd sums what they have moved (FedAvg), adamw adapts (FedAdam); 0: none",
        0,
    )
    local_steps: int = option("steps of SGD that a client makes, each of as many rows", 1)
    learning_rate: float = option("of the steps of a client", 0.1)
    proximal: float = option(
        "how strongly a client is held where the round began (FedProx, Li et al. 2020)", 0.0
    )
    lost: float = option("chance of a client to be lost before its part arrives", 0.0)
    secure: float | None = option(
        "sum parts as integers beneath masks (Bonawitz et al. 2017): the largest number of a part, "
        "to which larger ones are cut, such as 1; null: in the clear",
        None,
    )

    def __post_init__(self) -> None:
        for name in () if self.on else changed(self):
            raise ConfigError(
                f"{name}={getattr(self, name)} has no effect with clients=0; give clients, such as "
                f"10, or remove it"
            )
        if not 0 <= self.lost < 1:
            raise ConfigError(f"lost={self.lost} must be in [0, 1)")
        if self.secure is not None and self.clients < 3:
            raise ConfigError(f"secure={self.secure} needs clients=3 or more, not {self.clients}")

    @property
    def on(self) -> bool:
        """Whether training takes place at clients."""
        return self.clients > 0
