"""A private run: what it promises, how that is kept, and the card that says so."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen import data, files, tree
from jaxgen.data.objectives.settings import CHATS
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.privacy import accountant, ghost
from jaxgen.privacy.accountant import COARSE, Mechanism
from jaxgen.privacy.settings import RESOLVED
from jaxgen.run import shapes
from jaxgen.run.folder import CARD
from jaxgen.run.settings import Settings
from jaxgen.train.private import CausalGhost, Private
from jaxgen.train.settings import TrainSettings

LEARNT = ("bpe", "unigram", "chars")  # tokenizers that are made of the training text
UNITS = {
    "document": "a document or record",
    "file": "all text of a file",
    "row": "a row of tokens",
    "user": "all text of a user",
}
NOT_COVERED = (
    "epsilon is of the weights; losses, samples and validations shown meanwhile are not covered, "
    "nor is held-out text"
)


@dataclass(frozen=True)
class Budget:
    """What the steps of a private run cost."""

    settings: Settings
    rows: Any  # each of one unit

    @property
    def population(self) -> int:
        """Units of the training text."""
        return self.rows.count

    def batches(self, process: tuple[int, int]) -> data.Batches:
        """Return the batches of the run, each with the units that are drawn for its step."""
        train, seed = self.settings.train, self.settings.train.privacy.seed
        assert seed is not None
        if train.federated.on:
            return _rounds(self.settings, self.rows, self.mechanism.rate, seed, process)
        return data.poisson_batches(
            self.rows,
            context=self.settings.row_length,
            rate=self.mechanism.rate,
            batch=train.batch,
            seed=seed,
            process=process,
            workers=self.settings.data.workers,
        )

    @property
    def mechanism(self) -> Mechanism:
        """What each step does to the data."""
        privacy = self.settings.train.privacy
        assert privacy.expected is not None
        rate = min(privacy.expected / self.population, 1.0)
        return Mechanism(privacy.noise, rate, self.population, self.settings.train.units)

    def spent(self, steps: int) -> float:
        """Return epsilon after so many steps."""
        privacy = self.settings.train.privacy
        assert privacy.delta is not None
        options: Any = {"accountant": privacy.accountant, "interval": COARSE}
        return accountant.epsilon(self.mechanism, steps, privacy.delta, **options)

    def most_steps(self) -> int:
        """Return how many of the run's steps keep to epsilon."""
        train = self.settings.train
        privacy = train.privacy
        if privacy.epsilon is None:
            return train.steps
        limit: Any = (train.steps, privacy.epsilon, privacy.delta)
        return accountant.most_steps(self.mechanism, *limit, accountant=privacy.accountant)

    def record(self, steps: int) -> dict[str, Any]:
        """Return what a checkpoint of so many steps and the card say of privacy."""
        train, mechanism = self.settings.train, self.mechanism
        privacy = train.privacy
        method = private_of(self.settings).ghost
        return {
            "mechanism": "Gaussian, on sums of clipped gradients; float32",
            "noise_multiplier": mechanism.noise,
            "clip": privacy.clip,
            "clipping": privacy.clipping if privacy.quantile is None else "adaptive quantile",
            "norms": "vmap" if method is None else "ghost",
            "epsilon": round(self.spent(steps), 6),
            "delta": privacy.delta,
            "budget": privacy.epsilon,
            "accountant": f"dp-accounting {privacy.accountant}",
            "neighbours": "add or remove one unit",
            "unit": privacy.unit,
            "units": self.population,
            "sampling": "Poisson, truncated to "
            + ("train.federated.clients" if train.federated.on else "train.batch rows"),
            "probability": mechanism.rate,
            "rows": mechanism.size,
            "steps": steps,
        }

    def check(self, recorded: Any, steps: int) -> None:
        """Raise CheckpointError for a checkpoint of another mechanism than is to go on."""
        own = self.record(steps)
        for name in ("noise_multiplier", "clip", "delta", "unit", "probability", "rows", "steps"):
            value = (recorded or {}).get(name)
            if value != own[name]:
                raise CheckpointError(
                    f"the checkpoint of step {steps} was made with privacy {name}={value}, not "
                    f"{own[name]}; go on with the config that it was made with"
                )

    def write_card(self, folder: Path, steps: int) -> None:
        """Write the card of a run: mechanism, epsilon, delta, unit and sampling."""
        about = self.record(steps) | {
            "unit": f"{self.settings.train.privacy.unit}: "
            f"{UNITS[self.settings.train.privacy.unit]}",
            "not covered": NOT_COVERED,
            "tokenizer": _tokenizer(self.settings),
        }
        files.write_json(folder / CARD, about)

    def introduction(self) -> list[str]:
        """Return what a reader should know before the first step."""
        train, mechanism = self.settings.train, self.mechanism
        privacy = train.privacy
        goal = self.spent(train.steps)
        lines = [
            f"private: epsilon {goal:.3g} at delta {privacy.delta:g} after {train.steps} steps; "
            f"noise {mechanism.noise:.4g} x clip {privacy.clip:g}, about "
            f"{privacy.expected:.1f} of {self.population:,} units a step (unit: "
            f"{UNITS[privacy.unit]})",
            NOT_COVERED,
        ]
        if self.settings.tokenizer.kind in LEARNT:
            lines.append(_tokenizer(self.settings))
        if mechanism.overflow > 1e-3:
            lines.append(
                f"warning: a step draws more units than {_room(train)} holds once in "
                f"{1 / mechanism.overflow:.0f}, which costs epsilon; lower train.privacy.expected"
            )
        return lines


def _tokenizer(settings: Settings) -> str:
    kind = settings.tokenizer.kind
    if kind not in LEARNT:
        return f"tokenizer.kind={kind} is not made of the training text"
    return (
        f"tokenizer.kind={kind} is made of the training text, which epsilon does not cover; bytes "
        f"or init_from give one that is not"
    )


def _room(train: TrainSettings) -> str:
    """Return the setting that says how many units a step holds."""
    return f"train.{'federated.clients' if train.federated.on else 'batch'}={train.units}"


def unit_rows(run: Any) -> Any:
    """Return the rows of a run's training text, each of one unit: of a client, if it has any."""
    train = run.settings.train
    more: Any = {"context": run.settings.row_length, "seed": train.seed}
    unit = "user" if train.federated.on else train.privacy.unit
    return data.unit_rows(run.objective, run.corpus.train, unit=unit, **more)


def unit_batches(run: Any, process: tuple[int, int]) -> data.Batches | None:
    """Return the batches of a private or federated run; None for any other."""
    if run.budget is not None:
        return run.budget.batches(process)
    train = run.settings.train
    if not train.federated.on:
        return None
    return _rounds(run.settings, unit_rows(run), 1.0, train.seed, process)


def _rounds(
    settings: Settings, rows: Any, rate: float, seed: int, process: tuple[int, int]
) -> data.Batches:
    """Return the batches of a federated run; rate: chance of each client, 1: as many as asked."""
    train = settings.train
    return data.round_batches(
        rows,
        clients=train.federated.clients,
        each=train.batch // train.federated.clients,
        rate=rate,
        lost=train.federated.lost,
        seed=seed,
        process=process,
        workers=settings.data.workers,
    )


def with_saved(settings: Settings, saved: Settings | None) -> Settings:
    """Return settings whose open values are those that the run that is there was begun with."""
    if saved is None or not settings.train.privacy.on or not saved.train.privacy.on:
        return settings
    own, earlier = settings.train.privacy, saved.train.privacy
    values = {name: getattr(earlier, name) for name in RESOLVED if getattr(own, name) is None}
    return _with(settings, **values)


def with_sampling(settings: Settings, population: int) -> Settings:
    """Return settings with a secret seed and the expected rows of a step, where they are open.

    Raises ConfigError for expected rows, or a delta, that fit no such number of units.
    """
    train = settings.train
    privacy = train.privacy
    accountant.dp_accounting()
    assert privacy.delta is not None
    if privacy.seed is None:
        settings = _with(settings, seed=secrets.randbits(63))
    if privacy.delta * population >= 1:
        raise ConfigError(
            f"train.privacy.delta={privacy.delta:g} must be below 1 / {population}, the number of "
            f"units (unit={privacy.unit}): a mechanism that publishes a unit at random keeps it"
        )
    if privacy.expected is None:
        most = accountant.largest_expected(population, train.units, accountant=privacy.accountant)
        if most < 1:
            raise ConfigError(
                f"the training text has {population} units, so that most steps would draw none "
                f"(unit={privacy.unit}: {UNITS[privacy.unit]}); give records, each a line of a "
                f".jsonl file, or train.privacy.unit=row"
            )
        return _with(settings, expected=float(f"{most:.6g}"))
    if privacy.expected > min(train.units, population):
        raise ConfigError(
            f"train.privacy.expected={privacy.expected:g} must be at most {_room(train)} and the "
            f"{population} units"
        )
    return settings


def with_noise(settings: Settings, rows: Any) -> Settings:
    """Return settings with the noise that keeps to epsilon, where it is open."""
    privacy = settings.train.privacy
    if privacy.epsilon is None or privacy.solved_noise is not None:
        return settings
    mechanism, steps = Budget(settings, rows).mechanism, settings.train.steps
    limit: Any = (steps, privacy.epsilon, privacy.delta)
    noise = accountant.solve_noise(mechanism, *limit, accountant=privacy.accountant)
    return _with(settings, solved_noise=noise)


def for_plan(settings: Settings) -> Settings:
    """Return settings whose open values are any: a step of them costs what that of the run does."""
    privacy = settings.train.privacy
    if not privacy.on:
        return settings
    values = {"expected": float(settings.train.batch), "seed": 0, "solved_noise": privacy.noise}
    return _with(settings, **{n: x for n, x in values.items() if getattr(privacy, n) is None})


def _with(settings: Settings, **values: Any) -> Settings:
    privacy = replace(settings.train.privacy, **values)
    return replace(settings, train=replace(settings.train, privacy=privacy))


def private_of(settings: Settings, base: Any = None) -> Private:
    """Return how a run makes its gradients private; base: the parameters beneath an adapter.

    Raises ConfigError for method=ghost where model or loss don't allow it.
    """
    train, adapter = settings.train, shapes.adapter(settings)
    letters = tree.flatten(shapes.trained(settings)[1])
    own = None
    allowed = settings.objective.name in ("causal", "pairs", CHATS[0])
    allowed &= train.privacy.clipping == "flat" and ghost.supports(settings.model, letters)
    allowed &= (adapter is None or not adapter.saved) and not train.federated.on
    allowed &= train.quantize is None  # ghost norms read the parameters that are stored
    if allowed and train.privacy.method != "vmap":
        attached = partial(shapes.attached, settings, adapter, base)
        own = CausalGhost(attached, train.smoothing, train.z_loss, train.loss_chunk)
    elif train.privacy.method == "ghost":
        raise ConfigError(
            "train.privacy.method=ghost needs a decoder without experts whose trained parameters "
            "are products, tables, norms and biases, and a loss of next tokens, without "
            "train.quantize; take vmap, or auto"
        )
    return Private(train.privacy, letters, train.freeze, own)


Step = Callable[..., tuple[Any, dict[str, Any]]]


def with_adaptive_clip(step: Step, gradients: Callable) -> Step:
    """Return the step (state, batch) whose clip is the state's, and adapts."""

    def adaptive(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        after, metrics = step(state, batch, gradients=partial(gradients, clip=state.clip))
        return replace(after, clip=metrics.pop("next_clip")), metrics

    return adaptive
