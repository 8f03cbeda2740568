"""The training loop: the only place that decides what happens at which step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jaxgen.train.settings import TrainSettings
from jaxgen.train.state import State

Step = Callable[[State, dict[str, Any]], tuple[State, dict[str, Any]]]


@runtime_checkable
class Watch(Protocol):
    """What the loop tells while it runs; `train.log.Log` is one."""

    def step(self, step: int, metrics: dict[str, float]) -> None: ...
    def validation(self, step: int, metrics: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Duties:
    """What the loop calls on schedule.

    validate: state -> metrics, with "loss", or None if somebody asked to stop meanwhile; None
    where there is no validation text. sample: shows text after a validation, or where one would be;
    save: makes a checkpoint with the validation loss of its step (None if it has none yet);
    add_loss: adds that loss to a checkpoint that is made; is_best: whether a checkpoint of such a
    loss would be kept for it; poll: raises what went wrong in the background; stopping: whether
    somebody asked to stop; during: entered with what is done (compiling, training, validating,
    sampling), the step, and the state with its validation loss if these may be saved meanwhile;
    doctor: raises the error that explains a streak of bad steps; epoch: steps that show all of
    the text once; apart: whether the last call of the step did more than the step; ahead: whether
    a step is dispatched before the one before it has ended.
    """

    validate: Callable[[State], dict[str, float] | None] | None
    sample: Callable[[State, int], None]
    save: Callable[[State, int, float | None], None]
    add_loss: Callable[[int, float], None]
    is_best: Callable[[float], bool]
    poll: Callable[[], None]
    stopping: Callable[[], bool]
    during: Callable[..., AbstractContextManager]
    doctor: Callable[[State, int, dict[str, np.ndarray], dict[str, Any]], None]
    rate: Callable[[int], Any]
    flops_per_token: float
    peak: float
    save_every: int
    epoch: int
    apart: Callable[[], bool] = lambda: False
    ahead: bool = True


class Fitted(NamedTuple):
    """What `fit` ends with; `owed`: the validation of step `done` was cut short."""

    state: State
    done: int
    owed: bool


def fit(
    state: State,
    batches: Iterator[dict[str, np.ndarray]],
    step: Step,
    settings: TrainSettings,
    duties: Duties,
    watch: Watch,
    *,
    owed: bool = False,
) -> Fitted:
    """Train up to settings.steps, or until asked to stop.

    The state's own step says where to begin; `owed` makes its validation first, of a state that is
    saved. A step that is due is saved before it is validated, so that nothing that fails can lose
    it; one that is not due is saved if its validation loss is among the best.
    If `duties.ahead`, one step stays in flight: step k + 1 is dispatched before the metrics of step
    k are fetched, so the device does not wait for the host. Should step k turn out to end a streak
    of bad steps, the guard has refused k + 1 as well.
    """
    done = int(state.step)
    clock = Clock(duties)
    in_flight: tuple[int, dict, dict] | None = None
    what, streak = "compiling", 0
    if owed and not _check(state, done, duties, watch, saved=True):
        return Fitted(state, done, True)
    while done < settings.steps and not duties.stopping():
        last, checking = done + 1 == settings.steps, is_checked(done + 1, settings, duties.epoch)
        saving = last or (done + 1) % duties.save_every == 0
        with duties.during(what, done):
            batch = next(batches)
            state, metrics = step(state, batch)
            done += 1
            if duties.apart():
                clock.pause()
            previous, in_flight = in_flight, (done, batch, metrics)
            if previous:
                _settle(state, previous, settings, duties, clock, watch)
            if checking or saving or not duties.ahead:
                streak = _settle(state, in_flight, settings, duties, clock, watch)
                in_flight = None
            if not duties.ahead:
                clock.rest()
        what = "training"
        # In a streak nothing new is worth keeping, and a save would push an older one out.
        saved = saving and (last or not streak)
        if saved:
            duties.save(state, done, None)
        if checking and not _check(state, done, duties, watch, saved=saved, streak=streak):
            return Fitted(state, done, True)
        if checking or saving:
            clock.pause()
        duties.poll()
    if in_flight:
        _settle(state, in_flight, settings, duties, clock, watch)
    return Fitted(state, done, False)


def is_checked(step: int, settings: TrainSettings, epoch: int) -> bool:
    """Return whether a validation, or a sample, is due after this step; epoch: in steps."""
    every = epoch if settings.validate_every == "epoch" else settings.validate_every
    return step > 0 and (step == settings.steps or step % every == 0)


def _check(
    state: State, step: int, duties: Duties, watch: Watch, *, saved: bool, streak: int = 0
) -> bool:
    """Validate and sample; return False if somebody asked to stop meanwhile."""
    loss = None
    if duties.validate is not None:
        with duties.during("validating", step, state):
            found = duties.validate(state)
        if found is None:
            return False
        watch.validation(step, found)
        loss = found["loss"]
        if saved:
            duties.add_loss(step, loss)
        elif not streak and duties.is_best(loss):
            duties.save(state, step, loss)
    with duties.during("sampling", step, state, loss):
        duties.sample(state, step)
    return True


SMALL = 2**20  # bytes of weights


def runs_ahead(platform: str, weights: int) -> bool:
    """Return whether a step should be dispatched before the one before has ended.

    Not on a CPU, whose cores are the ones that compute, unless the model is so small that a step
    is as short as what the host does between two; weights: bytes.
    """
    return platform != "cpu" or weights < SMALL


WINDOW = 0.25  # seconds; over less than that a speed says nothing
REST = 1e-3  # seconds


class Clock:
    """Tokens per second of training alone, without compiling, validating and saving."""

    def __init__(self, duties: Duties) -> None:
        self.duties, self.latest = duties, {}
        self.tokens, self.spent = 0.0, 0.0
        self.since: float | None = None
        self.step = 0.0  # seconds of the last one

    def count(self, tokens: float) -> None:
        """Add the tokens of a finished step; the first after a pause only starts the clock."""
        now = time.perf_counter()
        if self.since is not None:
            self.step = now - self.since
            self.tokens, self.spent = self.tokens + tokens, self.spent + self.step
        self.since = now

    def pause(self) -> None:
        """Leave out the time until the next finished step."""
        self.since = None

    def rest(self) -> None:
        """Let the step that has ended give its temporaries back, for the next one to take.

        XLA on a CPU frees them some 0.1 ms after its results are there. A step begun before that
        allocates all of its own anew, and memory that the process keeps grows by them.
        """
        time.sleep(min(REST, self.step / 200))

    def read(self) -> dict[str, float]:
        """Return tokens_per_second and mfu since the last reading; {} before there is one."""
        if self.spent >= WINDOW:
            speed = self.tokens / self.spent
            used = speed * self.duties.flops_per_token / self.duties.peak
            self.latest = {"tokens_per_second": speed, "mfu": used}
            self.tokens, self.spent = 0.0, 0.0
        return self.latest


def _settle(state, step, settings, duties, clock, watch) -> int:
    """Fetch and record the metrics of a step; return how many bad ones it is in a row."""
    number, batch, metrics = step
    values = jax.device_get({k: v for k, v in metrics.items() if k != "examples"})
    clock.count(float(batch["tokens"].size))
    if int(values["streak"]) >= settings.patience:
        duties.doctor(state, number, batch, metrics)
    # A refused step is written down at once: it must not hide between two log lines.
    if number % settings.log_every == 0 or number == 1 or values["streak"]:
        record = {name: float(value) for name, value in values.items()}
        record["learning_rate"] = float(duties.rate(number - 1))
        watch.step(number, record | clock.read())
    return int(values["streak"])
