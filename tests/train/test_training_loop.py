"""The loop decides what happens at which step; here with a step that only counts."""

import contextlib
import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.ops import cpu
from jaxgen.ops.cpu import allocator
from jaxgen.train.loop import SMALL, Callbacks, Clock, fit, should_dispatch_ahead
from jaxgen.train.settings import TrainSettings
from jaxgen.train.state import Health, State


class Diary:
    """A MetricWriter and all Callbacks at once: it notes what it is called for."""

    def __init__(self, bad=(), stop_after=None, cut=(), ahead=True, best=(), validates=True,
                 empty=()):  # fmt: skip
        self.bad, self.stop_after, self.cut, self.ahead = bad, stop_after, cut, ahead
        self.best, self.validates, self.empty = best, validates, empty
        self.notes, self.speeds, self.phases, self.dispatched = [], [], [], []

    def step(self, step, metrics):
        self.notes.append(("step", step, metrics.get("loss")))
        self.dispatched.append(self.compute_calls)
        self.speeds.append(metrics.get("tokens_per_second"))

    def validation(self, step, metrics):
        self.notes.append(("valid", step, metrics["loss"]))

    def validate(self, state):
        step = int(state.step)
        return None if step in self.cut else {"loss": 100.0 + step}

    def callbacks(self, save_every):
        def stopping():
            dispatched = self.compute_calls
            return self.stop_after is not None and dispatched >= self.stop_after

        return Callbacks(
            validate=self.validate if self.validates else None,
            sample=lambda state, step: self.notes.append(("sample", step)),
            save=lambda state, step, loss: self.notes.append(("save", step, int(state.step), loss)),
            add_loss=lambda step, loss: self.notes.append(("loss", step, loss)),
            is_best=lambda loss: loss in self.best,
            poll=lambda: None,
            stopping=stopping,
            phase=self.phase,
            on_bad_streak=self.on_bad_streak,
            rate=lambda step: 0.5,
            flops_per_token=1.0,
            peak=1.0,
            save_every=save_every,
            epoch=3,
            dispatch_ahead=self.ahead,
        )

    @contextlib.contextmanager
    def phase(self, what, step, state=None, loss=None):
        # What may be saved meanwhile is the state after `step`, with its loss if it has one.
        assert (state is None) == (what in ("compiling", "training"))
        assert state is None or int(state.step) == step
        assert (loss is None) == (what != "sampling" or not self.validates)
        self.phases.append((what, step))
        yield

    def on_bad_streak(self, state, step, batch, metrics):
        raise ArithmeticError(f"bad streak at {step}")

    def compute(self, state, batch):
        self.compute_calls += 1
        number = self.compute_calls
        streak = 0
        while number - streak in self.bad:
            streak += 1
        metrics = {
            "loss": jnp.float32(number),
            "streak": jnp.int32(streak),
            "tokens": jnp.float32(number not in self.empty),
            "skipped": jnp.int32(len([b for b in self.bad if b <= number])),
            "examples": jnp.zeros(2),
        }
        return dataclasses.replace(state, step=state.step + 1), metrics

    def run(self, *, begin=0, save_every=4, validation_pending=False, **settings):
        self.compute_calls = begin
        zero = jnp.zeros((), jnp.int32)
        health = Health(jnp.zeros(()), zero, zero, zero)
        state = State(jnp.int32(begin), {}, (), None, health)
        batches = itertools.repeat({"tokens": np.zeros((2, 8), np.int32)})
        options = {"steps": 10, "warmup": 0, "log_every": 1, "validate_every": 5} | settings
        callbacks = self.callbacks(save_every)
        settings = TrainSettings(**options)
        return fit(
            state,
            batches,
            self.compute,
            settings,
            callbacks,
            self,
            validation_pending=validation_pending,
        )


def of(diary, kind):
    return [note for note in diary.notes if note[0] == kind]


def test_every_step_is_recorded_once_and_in_order():
    diary = Diary()
    state, done, _ = diary.run()
    assert done == int(state.step) == 10
    assert [note[1:] for note in of(diary, "step")] == [(n, float(n)) for n in range(1, 11)]


def test_a_step_without_a_token_shows_no_loss():
    diary = Diary(empty=(3,))
    diary.run(steps=4)
    assert [note[2] for note in of(diary, "step")] == [1.0, 2.0, None, 4.0]


def test_validations_samples_and_saves_come_on_schedule_and_at_the_end():
    diary = Diary()
    diary.run(steps=11)
    assert [note[1] for note in of(diary, "valid")] == [5, 10, 11]
    assert [note[1] for note in of(diary, "sample")] == [5, 10, 11]
    # A save comes before what may fail, and gets the validation loss of its own step only.
    assert of(diary, "save") == [("save", step, step, None) for step in (4, 8, 11)]
    assert of(diary, "loss") == [("loss", 11, 111.0)]
    assert [note[0] for note in diary.notes[-4:]] == ["save", "valid", "loss", "sample"]


def test_a_validation_between_saves_that_is_among_the_best_is_saved():
    diary = Diary(best=(103.0, 109.0, 112.0))
    diary.run(steps=12, validate_every=3)
    assert of(diary, "save") == [
        ("save", 3, 3, 103.0),
        ("save", 4, 4, None),
        ("save", 8, 8, None),
        ("save", 9, 9, 109.0),
        ("save", 12, 12, None),
    ]
    assert of(diary, "loss") == [("loss", 12, 112.0)]
    streak = Diary(best=(105.0,), bad=(5,))
    streak.run()
    assert [note[1] for note in of(streak, "save")] == [4, 8, 10]


def test_without_validation_text_all_steps_are_made_saved_and_shown():
    diary = Diary(validates=False)
    assert diary.run()[1:] == (10, False)
    assert of(diary, "valid") == of(diary, "loss") == []
    assert [note[1] for note in of(diary, "sample")] == [5, 10]
    assert [note[1] for note in of(diary, "save")] == [4, 8, 10]


def test_a_resumed_loop_does_only_what_is_left():
    diary = Diary()
    _, done, _ = diary.run(begin=8)
    assert done == 10
    assert [note[1] for note in of(diary, "step")] == [9, 10]


def test_one_step_is_in_flight_unless_told_otherwise():
    ahead, not_ahead = Diary(), Diary(ahead=False)
    assert ahead.run()[0].step == not_ahead.run()[0].step
    assert ahead.notes == not_ahead.notes
    # Those of a validation or a save (4, 5, 8, 10) are waited for.
    assert ahead.dispatched == [2, 3, 4, 4, 5, 7, 8, 8, 10, 10]
    assert not_ahead.dispatched == list(range(1, 11))


def test_only_steps_worth_waiting_for_are_waited_for_and_only_on_a_cpu():
    assert not should_dispatch_ahead("cpu", SMALL)
    assert should_dispatch_ahead("cpu", SMALL - 1)
    assert should_dispatch_ahead("gpu", SMALL)


def test_a_step_that_is_waited_for_is_given_a_moment_to_free_its_memory(monkeypatch):
    rests = []
    monkeypatch.setattr(allocator.time, "sleep", rests.append)
    Diary().run()
    assert rests == []
    Diary(ahead=False).run()
    assert len(rests) == 10
    for step in (0.1, 60.0):
        allocator.pause(step)
    assert rests[-2:] == [0.0005, allocator.PAUSE]
    with cpu.disabled("pause"):
        allocator.pause(60.0)
    assert len(rests) == 12


def test_asked_to_stop_it_records_the_step_in_flight():
    diary = Diary(stop_after=3)
    state, done, _ = diary.run()
    assert done == int(state.step) == 3
    assert [note[1] for note in of(diary, "step")] == [1, 2, 3]


def test_a_validation_cut_short_is_pending_and_its_step_is_saved():
    diary = Diary(cut=(8,))
    state, done, pending = diary.run(validate_every=4)
    assert (int(state.step), done, pending) == (8, 8, True)
    assert [note[1] for note in of(diary, "valid")] == [4]
    assert of(diary, "save")[1:] == [("save", 8, 8, None)]
    assert [note[1] for note in of(diary, "loss")] == [4]
    assert [note[1] for note in of(diary, "step")] == list(range(1, 9))


def test_a_pending_validation_comes_first_and_is_saved_also_after_the_last_step():
    for begin in (8, 10):
        diary = Diary()
        assert diary.run(begin=begin, validation_pending=True)[1:] == (10, False)
        assert diary.notes[:3] == [
            ("valid", begin, 100.0 + begin),
            ("loss", begin, 100.0 + begin),
            ("sample", begin),
        ]
        assert len(of(diary, "valid")) == (2 if begin == 8 else 1)
    diary = Diary(cut=(8,))
    assert diary.run(begin=8, validation_pending=True)[1:] == (8, True)
    assert diary.notes == []


def test_the_first_step_compiles_and_each_phase_is_told():
    diary = Diary()
    diary.run(begin=3, steps=6)
    assert diary.phases == [
        ("compiling", 3),
        ("training", 4),
        ("validating", 5),
        ("sampling", 5),
        ("training", 5),
        ("validating", 6),
        ("sampling", 6),
    ]


def test_a_bad_step_is_logged_at_once_and_nothing_is_saved_within_a_streak():
    diary = Diary(bad=(4, 7))
    diary.run(log_every=100, steps=2000, save_every=4, validate_every=2000)
    logged = [note[1] for note in of(diary, "step")]
    assert logged == [1, 4, 7, *range(100, 2001, 100)]
    assert [note[1] for note in of(diary, "save")] == [*range(8, 2001, 4)]


@pytest.mark.parametrize("steps", [1, 4, 10, 11, 25, 99])
def test_a_short_run_logs_ten_steps_and_its_last(steps):
    diary = Diary()
    diary.run(log_every=50, steps=steps, validate_every=1000)
    logged = [note[1] for note in of(diary, "step")]
    assert min(steps, 10) <= len(logged) <= 20 and logged[0] == 1 and logged[-1] == steps


def test_a_bad_streak_is_reported_for_the_step_that_ends_the_patience():
    diary = Diary(bad=(2, 3, 4))
    with pytest.raises(ArithmeticError, match="bad streak at 4"):
        diary.run(patience=3)
    assert [note[1] for note in of(diary, "step")] == [1, 2, 3]


@pytest.mark.parametrize("shares", [1, 3])
def test_the_clock_counts_training_time_alone_and_the_tokens_of_all_processes(shares, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    callbacks = dataclasses.replace(Diary().callbacks(1), peak=400.0 * shares, row_shares=shares)
    clock = Clock(callbacks)
    clock.count(1e9)  # the first step compiles
    assert clock.read() == {}
    for pause in (False, True, False):
        now[0] += 0.5
        clock.count(100.0)
        if pause:
            clock.pause()
            now[0] += 1000.0
            clock.count(1e9)
    assert clock.read() == {"tokens_per_second": 200.0 * shares, "mfu": 0.5}


def test_no_utilisation_is_said_that_a_wrongly_measured_peak_would_put_above_one(monkeypatch):
    now = itertools.count(0.0, 1.0)
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(dataclasses.replace(Diary().callbacks(1), peak=99.0))
    clock.count(100.0)
    clock.count(100.0)
    assert clock.read() == {"tokens_per_second": 100.0}


def test_the_clock_leaves_out_a_step_that_did_more(monkeypatch):
    diary, now = Diary(), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def compute(state, batch):
        now[0] += 1000.0 if diary.compute_calls == 3 else 0.5  # the fourth
        return Diary.compute(diary, state, batch)

    monkeypatch.setattr(diary, "compute", compute)
    callbacks = Diary.callbacks
    monkeypatch.setattr(
        diary,
        "callbacks",
        lambda every: dataclasses.replace(
            callbacks(diary, every), extra_work=lambda: diary.compute_calls == 4
        ),
    )
    diary.run(steps=8, validate_every=8, save_every=8)
    assert set(diary.speeds) - {None} == {32.0}
