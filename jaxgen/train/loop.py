"""The training loop: the only place that decides what happens at which step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jaxgen.ops.cpu import allocator
from jaxgen.train.nonfinite import CAUSES
from jaxgen.train.settings import TrainSettings
from jaxgen.train.state import State

Step = Callable[[State, dict[str, Any]], tuple[State, dict[str, Any]]]


@runtime_checkable
class MetricWriter(Protocol):
    """Receives the metrics of steps and validations; `train.log.Log` is one.

    A step that was skipped has "cause", in words; all else are numbers.
    """

    def step(self, step: int, metrics: dict[str, Any]) -> None: ...
    def validation(self, step: int, metrics: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Callbacks:
    """The functions that the loop calls on schedule, and the numbers of the schedule.

    Attributes:
        validate: state -> metrics, with "loss", or None if a stop was requested meanwhile; None
            without validation text.
        sample: shows generated text after a validation, or where one would be.
        save: saves a checkpoint with the validation loss of its step (None if not known yet).
        add_loss: adds the validation loss to a checkpoint already saved.
        is_best: whether `keep_best` would keep a checkpoint with this validation loss.
        poll: raises errors of background work.
        stopping: whether a stop was requested.
        is_over: whether the validations made end the training.
        phase: context manager around each phase (compiling, training, validating, sampling); gets
            its name, the step and, where saving is safe, the state and its validation loss.
        on_bad_streak: raises the error that explains a streak of bad steps.
        rate: step -> learning rate.
        flops_per_token: of training.
        peak: FLOP/s of all devices.
        row_shares: of how many processes each has rows of a batch of its own.
        save_every: steps.
        epoch: steps that show all of the text once.
        extra_work: whether the last call of the step did more than the step.
        rollout: (state, batch) -> the batch that the state makes of it, and further metrics.
        cycle: steps that share a rollout, between which nothing is saved and nothing ends.
        spent: step -> metrics of what the steps up to it have cost: epsilon.
        dispatch_ahead: whether a step is dispatched before the previous one has ended.
    """

    validate: Callable[[State], dict[str, float] | None] | None
    sample: Callable[[State, int], None]
    save: Callable[[State, int, float | None], None]
    add_loss: Callable[[int, float], None]
    is_best: Callable[[float], bool]
    poll: Callable[[], None]
    stopping: Callable[[], bool]
    phase: Callable[..., AbstractContextManager]
    on_bad_streak: Callable[[State, int, dict[str, np.ndarray], dict[str, Any]], None]
    rate: Callable[[int], Any]
    flops_per_token: float
    peak: float
    save_every: int
    epoch: int
    extra_work: Callable[[], bool] = lambda: False
    dispatch_ahead: bool = True
    is_over: Callable[[], bool] = lambda: False
    row_shares: int = 1
    rollout: Callable[[State, dict], tuple[dict, dict[str, float]]] | None = None
    cycle: int = 1
    spent: Callable[[int], dict[str, float]] = lambda step: {}


class FitResult(NamedTuple):
    """Result of `fit`; validation_pending: a stop cut the validation of step `done` short."""

    state: State
    done: int
    validation_pending: bool


def fit(
    state: State,
    batches: Iterator[dict[str, np.ndarray]],
    step: Step,
    settings: TrainSettings,
    callbacks: Callbacks,
    writer: MetricWriter,
    *,
    validation_pending: bool = False,
) -> FitResult:
    """Train up to settings.steps, or until a stop is requested, from the state's own step.

    A step that is due is saved before it is validated, so that no failure there can lose it; one
    that is not due is saved if its validation loss is among the best. With
    `callbacks.dispatch_ahead` one step stays in flight: step k + 1 is dispatched before the metrics
    of step k are fetched, so the device does not wait for the host. If step k turns out to end a
    streak of bad steps, the check inside the step has refused k + 1 as well.

    state: consumed. batches: of this process. validation_pending: validate the initial state,
    which is saved, first.
    """
    done = int(state.step)
    clock = Clock(callbacks)
    in_flight: tuple[int, dict, dict] | None = None
    what, streak = "compiling", 0
    if validation_pending and not _validate_and_sample(state, done, callbacks, writer, saved=True):
        return FitResult(state, done, True)
    ends = lambda: callbacks.is_over() or callbacks.stopping()  # noqa: E731
    while done < settings.steps and not (done % callbacks.cycle == 0 and ends()):
        last = done + 1 == settings.steps
        checking = is_validation_due(done + 1, settings, callbacks.epoch)
        saving = last or (done + 1) % callbacks.save_every == 0
        with callbacks.phase(what, done):
            batch, more = next(batches), {}
            if callbacks.rollout is not None:
                batch, more = callbacks.rollout(state, batch)
            state, metrics = step(state, batch)
            metrics |= more
            done += 1
            if callbacks.extra_work():
                clock.pause()
            previous, in_flight = in_flight, (done, batch, metrics)
            if previous:
                _flush_metrics(state, previous, settings, callbacks, clock, writer)
            if checking or saving or not callbacks.dispatch_ahead:
                streak = _flush_metrics(state, in_flight, settings, callbacks, clock, writer)
                in_flight = None
            if not callbacks.dispatch_ahead:
                allocator.pause(clock.step)
        what = "training"
        # In a streak nothing new is worth keeping, and a save would push an older one out.
        saved = saving and (last or not streak)
        if saved:
            callbacks.save(state, done, None)
        if checking and not _validate_and_sample(
            state, done, callbacks, writer, saved=saved, streak=streak
        ):
            return FitResult(state, done, True)
        if checking or saving:
            clock.pause()
        callbacks.poll()
    if in_flight:
        _flush_metrics(state, in_flight, settings, callbacks, clock, writer)
    return FitResult(state, done, False)


def is_validation_due(step: int, settings: TrainSettings, epoch: int) -> bool:
    """Return whether a validation or a sample is due after this step; epoch: in steps."""
    every = epoch if settings.validate_every == "epoch" else settings.validate_every
    return step > 0 and (step == settings.steps or step % every == 0)


def _validate_and_sample(
    state: State,
    step: int,
    callbacks: Callbacks,
    writer: MetricWriter,
    *,
    saved: bool,
    streak: int = 0,
) -> bool:
    """Validate and sample; return False if a stop was requested meanwhile."""
    loss = None
    if callbacks.validate is not None:
        with callbacks.phase("validating", step, state):
            metrics = callbacks.validate(state)
        if metrics is None:
            return False
        writer.validation(step, metrics)
        loss = metrics["loss"]
        if saved:
            callbacks.add_loss(step, loss)
        elif not streak and callbacks.is_best(loss):
            callbacks.save(state, step, loss)
    with callbacks.phase("sampling", step, state, loss):
        callbacks.sample(state, step)
    return True


LINES = 10  # of a run, however short it is
SMALL = 2**20  # bytes of weights


def should_dispatch_ahead(platform: str, weights: int) -> bool:
    """Return whether to dispatch a step before the previous one has ended.

    Not on a CPU, where the host's work takes cores from the computation, unless the model is so
    small that a step is as short as the host's work between two steps. weights: bytes.
    """
    return platform != "cpu" or weights < SMALL


WINDOW = 0.25  # seconds; shorter measurements are noise


class Clock:
    """Measures tokens per second of all processes, without compiling, validating and saving."""

    def __init__(self, callbacks: Callbacks) -> None:
        self.callbacks, self.latest = callbacks, {}
        self.tokens, self.spent = 0.0, 0.0
        self.since: float | None = None
        self.step = 0.0  # seconds of the last one

    def count(self, tokens: float) -> None:
        """Add this process's tokens of a finished step, and with them those of the others.

        The first after a pause only starts the clock.
        """
        now = time.perf_counter()
        if self.since is not None:
            self.step = now - self.since
            self.tokens += tokens * self.callbacks.row_shares
            self.spent += self.step
        self.since = now

    def pause(self) -> None:
        """Leave out the time until the next finished step."""
        self.since = None

    def read(self) -> dict[str, float]:
        """Return tokens_per_second and mfu since the last reading; {} before there is one."""
        if self.spent >= WINDOW:
            speed = self.tokens / self.spent
            used = speed * self.callbacks.flops_per_token / self.callbacks.peak
            self.latest = {"tokens_per_second": speed}
            if used <= 1:  # else the peak was measured while the machine did something else
                self.latest["mfu"] = used
            self.tokens, self.spent = 0.0, 0.0
        return self.latest


def _flush_metrics(state, step, settings, callbacks, clock, writer) -> int:
    """Fetch and write the metrics of a step; return its streak of bad steps."""
    number, batch, metrics = step
    values = jax.device_get({k: v for k, v in metrics.items() if k != "examples"})
    clock.count(float(batch["tokens"].size))
    if int(values["streak"]) >= settings.patience:
        callbacks.on_bad_streak(state, number, batch, metrics)
    every = min(settings.log_every, max(settings.steps // LINES, 1))
    # A bad step is logged at once, whatever log_every is.
    if number % every == 0 or number in (1, settings.steps) or values["streak"]:
        cause = CAUSES[int(values.pop("cause", 0))]
        record: dict[str, Any] = {name: float(value) for name, value in values.items()}
        if cause:
            record["cause"] = cause
        if record.get("tokens") == 0:  # a private step that drew no row has no mean loss
            record = {n: x for n, x in record.items() if n not in ("loss", "objective")}
        record["learning_rate"] = float(callbacks.rate(number - 1))
        writer.step(number, record | callbacks.spent(number) | clock.read())
    return int(values["streak"])
