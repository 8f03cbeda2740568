"""How a model is trained: the knobs of the `train` section."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxgen import arguments
from jaxgen.arguments import Range, above, at_least, between
from jaxgen.errors import ConfigError
from jaxgen.privacy.settings import FederatedSettings, PrivacySettings
from jaxgen.settings import changed, option

# Kinds of train.adversarial by what they do; what null means for each: (epsilon, weight, start).
PERTURBING, SMOOTHING = ("fgm", "pgd", "freelb", "neftune"), ("vat", "smart", "rdrop")
ASCENDING = ("pgd", "freelb", "vat", "smart")  # in several steps
_ADVERSARIAL = {
    "fgm": (1.0, 0.5, 0.0),
    "pgd": (1.0, 0.5, 0.0),
    "freelb": (1.0, 1.0, 1.0),
    "neftune": (5.0, 1.0, 1.0),
    "vat": (1.0, 1.0, 0.1),
    "smart": (1.0, 1.0, 0.1),
    "rdrop": (0.0, 1.0, 0.0),
}


@arguments.checked(
    **dict.fromkeys(("epsilon", "step_size"), above(0)),
    weight=above(0),
    steps=at_least(1),
    start=between(0, 1),
)
@dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """What is added to the vectors of tokens in training; ConfigError names the field at fault."""

    kind: Literal["fgm", "pgd", "freelb", "vat", "smart", "neftune", "rdrop"] | None = option(
        "fgm, pgd: also learn where the loss is higher; freelb: on the way there; vat, smart: "
        "predict alike there; rdrop: predict alike under two draws of dropout; neftune: noise; "
        "null: none",
        None,
    )
    epsilon: float | None = option(
        "most that is added to the vectors of a row; neftune: its alpha; null: 1, of neftune 5",
        None,
    )
    norm: Literal["l2", "linf"] = option("length of a row's vectors together, or of a number", "l2")
    steps: int | None = option("pgd, freelb, vat, smart: steps of the ascent; null: 3", None)
    step_size: float | None = option(
        "length of a step; null: 2.5 * epsilon / steps; vat: how far it looks, null: epsilon / 10",
        None,
    )
    start: float | None = option(
        "noise that the ascent starts with, as part of epsilon; null: 0 for pgd, 1 for freelb, 0.1 "
        "for vat and smart",
        None,
    )
    weight: float | None = option(
        "fgm, pgd: part of the loss that is taken there, 1 at most; vat, smart, rdrop: of the "
        "divergence; null: 0.5, or 1",
        None,
    )

    def __post_init__(self) -> None:
        uses: dict[str, tuple[str, ...]] = {
            "epsilon": (*PERTURBING, "vat", "smart"),
            "norm": ("fgm", *ASCENDING),
            "steps": ASCENDING,
            "step_size": ASCENDING,
            "start": ASCENDING,
            "weight": ("fgm", "pgd", *SMOOTHING),
        }
        for name, kinds in uses.items():
            if self.kind not in kinds and name in changed(self):
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect with kind={self.kind}; remove it, "
                    f"or set kind={', '.join(kinds)}"
                )
        if self.kind in ("vat", "smart") and self.start == 0:
            raise ConfigError(f"start=0 leaves kind={self.kind} where nothing grows; give 0.1")
        if self.kind in ("fgm", "pgd") and self.share > 1:
            raise ConfigError(f"weight={self.weight} is a part of the loss: 1 at most")

    @property
    def on(self) -> bool:
        """Whether the loss is changed at all."""
        return self.kind is not None

    @property
    def size(self) -> float:
        """Epsilon, where it is null that of the kind."""
        return _ADVERSARIAL[self.kind or "fgm"][0] if self.epsilon is None else self.epsilon

    @property
    def share(self) -> float:
        """Weight, where it is null that of the kind."""
        return _ADVERSARIAL[self.kind or "fgm"][1] if self.weight is None else self.weight

    @property
    def noise(self) -> float:
        """Start, where it is null that of the kind."""
        return _ADVERSARIAL[self.kind or "fgm"][2] if self.start is None else self.start

    @property
    def number(self) -> int:
        """Steps of the ascent; of fgm one."""
        return 1 if self.kind == "fgm" else 3 if self.steps is None else self.steps

    @property
    def stride(self) -> float:
        """Length of a step; of fgm all of epsilon."""
        if self.step_size is not None or self.kind == "fgm":
            return self.step_size or self.size
        return self.size / 10 if self.kind == "vat" else 2.5 * self.size / self.number


@arguments.checked(
    **dict.fromkeys(("steps", "batch", "accumulate", "patience", "log_every"), at_least(1)),
    **dict.fromkeys(("learning_rate", "epsilon", "clip", "epochs"), above(0)),
    **dict.fromkeys(("weight_decay", "z_loss", "warmup"), at_least(0)),
    **dict.fromkeys(("beta1", "beta2", "smoothing"), Range(0, 1, below=True)),
    **dict.fromkeys(("decay", "final_rate"), between(0, 1)),
    seed=Range(0, 2**63, below=True),
)
@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Optimisation, batching and watching; raises ConfigError naming the field at fault."""

    steps: int = option("optimizer steps in all", 1000)
    epochs: float | None = option("passes over the training text, instead of steps", None)
    batch: int = option("sequences per step, over all devices and microbatches", 32)
    accumulate: int = option("microbatches a step is split into; the result is the same", 1)
    optimizer: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = option(
        "update rule; sgd: with momentum beta1", "adamw"
    )
    learning_rate: float = option("peak learning rate", 1e-3)
    schedule: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = option(
        "of the learning rate after warm-up; wsd: constant, then linear decay; inverse_sqrt: of "
        "step / warmup (Vaswani et al. 2017)",
        "cosine",
    )
    warmup: int = option("steps of linear warm-up; cut to a run that is shorter", 100)
    decay: float = option("wsd: last fraction of the steps, in which the rate falls", 0.2)
    final_rate: float = option(
        "cosine, linear, wsd: learning rate at the end, as a fraction of the peak", 0.1
    )
    beta1: float = option("decay of the first moment (momentum); not adafactor's", 0.9)
    beta2: float = option(
        "decay of the second moment; lion: of the momentum; not adafactor's", 0.99
    )
    epsilon: float = option("added to the root of the second moment (adamw, muon's adam)", 1e-8)
    weight_decay: float = option("decoupled weight decay", 0.1)
    no_decay: tuple[str, ...] = option(
        "globs of parameter paths without decay", ("*bias", "*norm*")
    )
    freeze: tuple[str, ...] = option("globs of parameter paths that stay as they are", ())
    zeros: tuple[str, ...] = option(
        "globs of matrices of layers whose zeros stay zeros, as `jaxgen compress` leaves them", ()
    )
    quantize: Literal["int8", "int4"] | None = option(
        "round the matrices of layers in each step, in groups of 64 inputs as `jaxgen compress` "
        "does at the end, and train the exact numbers; null: no rounding",
        None,
    )
    clip: float | None = option(
        "largest global gradient norm; null: no clipping; a private run clips rows instead", 1.0
    )
    smoothing: float = option("label smoothing", 0.0)
    z_loss: float = option("weight of logsumexp(logits)^2", 0.0)
    loss_chunk: int | None = option("positions whose logits exist at once; null: by size", None)
    spike: float | None = option("skip a step whose loss exceeds this multiple of its mean", 4.0)
    ema: float | None = option(
        "decay of an average of the parameters, which is validated, saved for use and generated "
        "with, such as 0.999; null: none",
        None,
    )
    early_stopping: int | None = option(
        "validations in a row without a lower loss after which training ends; null: never", None
    )
    patience: int = option("skipped steps in a row after which training stops", 3)
    seed: int = option("of initialisation, data order and dropout", 0)
    log_every: int = option(
        "steps between lines of metrics.jsonl; fewer in a run too short for ten of them", 10
    )
    validate_every: int | Literal["epoch"] = option(
        "steps between validations; epoch: as many as show all of the training text once", 200
    )
    track: tuple[Literal["tensorboard", "wandb"], ...] = option(
        "what is told of metrics and samples besides metrics.jsonl: tensorboard (events/), wandb "
        "(Weights & Biases, whose variables such as WANDB_PROJECT hold)",
        ("tensorboard",),
    )
    validate_batches: int | None = option("batches of a validation; null: the whole split", None)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    federated: FederatedSettings = field(default_factory=FederatedSettings)
    adversarial: AdversarialSettings = field(default_factory=AdversarialSettings)

    def __post_init__(self) -> None:
        if self.validate_every != "epoch" and self.validate_every < 1:
            raise ConfigError(f"validate_every={self.validate_every} must be at least 1")
        for name in ("loss_chunk", "validate_batches", "early_stopping"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1, or null")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema={self.ema} must be greater than 0 and less than 1, or null")
        if self.batch % self.accumulate:
            raise ConfigError(
                f"batch={self.batch} is not a multiple of accumulate={self.accumulate}"
            )
        self._check_federated()
        if self.spike is not None and self.spike <= 1:
            raise ConfigError(f"spike={self.spike} must be greater than 1, or null")

    def _check_federated(self) -> None:
        own = self.federated
        if not own.on:
            return
        if self.batch % (each := own.clients * own.local_steps):
            raise ConfigError(
                f"batch={self.batch} is not a multiple of federated.clients={own.clients} * "
                f"federated.local_steps={own.local_steps}, which get equally many rows; give "
                f"batch={each * max(self.batch // each, 1)}, for example"
            )
        if own.clients % self.accumulate:
            raise ConfigError(
                f"accumulate={self.accumulate} does not divide federated.clients={own.clients}; "
                f"give a divisor of {own.clients}"
            )
        if own.secure is not None and self.accumulate > 1:
            raise ConfigError(
                f"federated.secure={own.secure} sums all clients of a round at once, but "
                f"accumulate={self.accumulate}; leave one of them out"
            )

    @property
    def units(self) -> int:
        """Units of privacy that a step holds at most: its clients, or its rows."""
        return self.federated.clients or self.batch


@arguments.checked(
    group=at_least(2), iterations=at_least(1), temperature=above(0), clip=above(0), beta=at_least(0)
)
@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """How a model learns from rewards; raises ConfigError naming the field at fault."""

    reward: str | None = option(
        "module:function or FILE.py:function that returns a reward for each of (prompts, "
        "completions, records), or of (tokens); null: 1 for the `answer` of the record",
        None,
    )
    loss: Literal["grpo", "bnpo", "dr_grpo", "rloo"] = option(
        "grpo, bnpo, dr_grpo: of tokens; rloo: of whole completions", "grpo"
    )
    group: int = option("completions of each prompt; train.batch is a multiple of it", 8)
    temperature: float = option("of sampling, and of the probabilities that are learnt", 1.0)
    iterations: int = option("steps that are made with the same completions", 1)
    clip: float = option("how far the ratio to the sampling model counts, around 1", 0.2)
    beta: float = option("weight of the divergence from the model at the beginning", 0.0)

    @property
    def needs_old(self) -> bool:
        """Whether a batch has the log-probabilities of the model that has sampled it."""
        return self.iterations > 1 or (self.loss == "rloo" and self.beta > 0)


@arguments.checked(
    beta=Range(0, 1, above=True, below=True), temperature=above(0), top=at_least(1),
    weight=Range(0, 1, above=True), hidden=at_least(0), attention=at_least(0),
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How a model learns from another one; raises ConfigError naming the field at fault."""

    teacher: Path | None = option(
        "a run, a folder or a GGUF file with the same tokenizer, whose probabilities are learnt; "
        "it may be quantised (`jaxgen compress`); null: none",
        None,
    )
    loss: Literal["forward", "reverse", "jensen_shannon"] = option(
        "divergence: KL(teacher, student), KL(student, teacher), or of both to their mixture",
        "forward",
    )
    beta: float = option("jensen_shannon: the teacher's share of the mixture", 0.5)
    temperature: float = option("what the logits of both are divided by", 1.0)
    weight: float = option("of the divergence; the text itself gets the rest", 0.5)
    top: int | None = option("likeliest tokens of the teacher that are told apart; null: all", None)
    keep: Path | None = option(
        "folder that keeps what the teacher says of each batch, for this run and others; with top",
        None,
    )
    layers: tuple[tuple[int, int], ...] = option(
        "[layer, the teacher's layer that it learns from], as [[1, 3], [2, 5]]; from 0", ()
    )
    hidden: float = option("weight of 1 less the cosine of the states behind those layers", 0.0)
    attention: float = option("weight of KL(teacher, student) of their attention, by heads", 0.0)

    def __post_init__(self) -> None:
        if self.beta != 0.5 and self.loss != "jensen_shannon":
            raise ConfigError(f"beta={self.beta} has no effect with loss={self.loss}; remove it")
        if bool(self.layers) != bool(self.hidden or self.attention):
            raise ConfigError(
                f"layers={self.layers}, hidden={self.hidden} and attention={self.attention}: give "
                f"layers and a weight, or none of them"
            )
        if self.keep is not None and (self.top is None or self.layers):
            raise ConfigError(
                f"keep={self.keep} keeps probabilities of likely tokens; give top, as top=32, and "
                f"no layers"
            )


# Losses of pairs by whether a reference model gives what they are relative to.
WITH_REFERENCE = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair"),
    *("sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "kto", "apo_zero_unpaired"),
)
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "aot", "aot_unpaired", "cpo", "simpo")
UNPAIRED = ("kto", "apo_zero_unpaired")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """Which loss preferences have; raises ConfigError naming the field at fault."""

    loss: Literal[
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair",
        "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "orpo", "cpo", "simpo",
        "kto", "apo_zero_unpaired",
    ] = option("of pairs: sigmoid (DPO) to simpo; of single completions: kto, apo_zero_unpaired",
               "sigmoid")  # fmt: skip
    beta: float = option("scale of the rewards; of orpo: weight of the odds", 0.1)
    label_smoothing: float = option("part of the preferences taken to be the wrong way", 0.0)
    gamma: float = option("simpo: margin of the rewards that is aimed at", 0.5)
    nll: float | None = option(
        "cpo, simpo, orpo: weight of the chosen text's nll; null: 1, 0, 1", None
    )
    desirable: float = option("kto: weight of what is liked", 1.0)
    undesirable: float = option("kto: weight of what is not", 1.0)
    center: float = option("reward models: weight of the squared sum of a pair's rewards", 0.0)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"beta={self.beta} must be greater than 0")
        smoothing = self.label_smoothing
        if not 0 <= smoothing < 0.5:
            raise ConfigError(f"label_smoothing={smoothing} must be in [0, 0.5)")
        self._check_effect("label_smoothing", SMOOTHED)
        self._check_effect("gamma", ("simpo",))
        self._check_effect("nll", ("cpo", "simpo", "orpo"))
        self._check_effect("desirable", UNPAIRED)
        self._check_effect("undesirable", UNPAIRED)
        if self.loss == "exo_pair" and not smoothing:
            raise ConfigError("loss=exo_pair needs label_smoothing above 0, such as 0.001")
        for name in ("nll", "desirable", "undesirable", "center"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")

    def _check_effect(self, name: str, losses: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if self.loss not in losses and name in changed(self):
            raise ConfigError(f"{name}={value} has no effect with loss={self.loss}; remove it")

    @property
    def has_reference(self) -> bool:
        """Whether the loss is relative to a reference model."""
        return self.loss in WITH_REFERENCE

    @property
    def nll_weight(self) -> float:
        """The weight of the chosen text's nll."""
        return {"cpo": 1.0, "orpo": 1.0}.get(self.loss, 0.0) if self.nll is None else self.nll
