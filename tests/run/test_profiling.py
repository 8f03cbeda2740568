"""A profile says what the steps' time went to, and its failure is never the run's."""

import contextlib
import dataclasses

import jax.numpy as jnp
import pytest

from jaxgen.errors import BusyError, ConfigError
from jaxgen.profile import take, trace
from jaxgen.run import profiling
from jaxgen.train.state import Health, State


def a_state():
    zero = jnp.zeros((), jnp.int32)
    return State(zero, {}, (), None, Health(jnp.zeros(()), zero, zero, zero))


def onwards(state, batch):
    return dataclasses.replace(state, step=state.step + 1), {}


def test_a_run_without_steps_to_trace_or_a_place_for_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has 6 to train"):
        profiling.check(6, tmp_path)
    profiling.check(7, tmp_path)
    (tmp_path / "profile").touch()
    with pytest.raises(BusyError, match="profile"):
        take.prepare(tmp_path / "profile")


@pytest.mark.parametrize("fails", ["entering", "leaving"])
def test_a_trace_that_fails_is_said_and_training_goes_on(monkeypatch, tmp_path, fails):
    @contextlib.contextmanager
    def record(folder):
        if fails == "entering":
            raise RuntimeError("Profile has already been started.")
        yield
        raise RuntimeError("no\nspace left")

    monkeypatch.setattr(trace, "record", record)
    said = []
    state = a_state()
    with profiling.Profiled(onwards, tmp_path, 0, said.append) as step:
        for _ in range(9):
            state, _ = step(state, {})
    assert int(state.step) == 9
    reason = "Profile has already been started." if fails == "entering" else "no space left"
    assert said == [f"no profile: {reason}; training goes on"]


def test_a_trace_that_the_end_of_training_cuts_short_is_given_up(monkeypatch, tmp_path):
    left = []

    @contextlib.contextmanager
    def record(folder):
        yield
        left.append(folder)

    monkeypatch.setattr(trace, "record", record)
    said = []
    with profiling.Profiled(onwards, tmp_path, 0, said.append) as step:
        for _ in range(4):
            step(a_state(), {})
            assert not step.extra_work()
    assert left == [tmp_path]
    assert said == ["no profile: training ended after 2 of 5 steps"]
