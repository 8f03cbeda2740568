"""A step that hangs is reported while it hangs, with the line it hangs in."""

import threading
import time
from types import SimpleNamespace

import pytest

from jaxgen.run import watchdog
from jaxgen.run.watchdog import Limits, Watchdog


def hang_here(gate):
    assert gate.wait(20)


@pytest.fixture
def said():
    return []


def dog(folder, said, **limits):
    return Watchdog(folder, said.append, Limits(**{"least": 0.1, "others": 0.3} | limits))


@pytest.fixture
def now(monkeypatch):
    clock = [0.0]
    faked = SimpleNamespace(monotonic=lambda: clock[0], strftime=time.strftime)
    monkeypatch.setattr(watchdog, "time", faked)
    return clock


def spend(watch, now, what, step, seconds):
    """Do something for so long; the watchdog looks just before it is done."""
    with watch.watching(what, step):
        now[0] += seconds
        watch.look()


def test_a_hanging_step_is_said_once_with_its_place_and_said_again_when_it_ends(tmp_path, said):
    gate = threading.Event()
    with dog(tmp_path, said) as watch:
        for step in range(5):
            with watch.watching("training", step):
                time.sleep(0.001)
        threading.Timer(1.0, gate.set).start()
        with watch.watching("training", 5):
            hang_here(gate)
    assert len(said) == 2
    assert "warning: training after step 5 has been going on for 0." in said[0]
    assert "a step usually takes 0.00" in said[0] and str(tmp_path / "stall-5.txt") in said[0]
    assert "training after step 5 went on after 1." in said[1]
    text = (tmp_path / "stall-5.txt").read_text()
    assert "hang_here" in text and said[0].partition(";")[0] in text


def test_the_limit_is_a_multiple_of_the_median_step(tmp_path, said, now):
    watch = dog(tmp_path, said, least=1.0, times=4.0, others=9.0)
    for step, seconds in enumerate((2.0, 3.0, 2.0, 7.9)):
        spend(watch, now, "training", step, seconds)
    assert said == []
    spend(watch, now, "training", 4, 10.1)  # the median is 2.5 by now
    assert "step 4 has been going on for 10.1 s (a step usually takes 2.5 s)" in said[0]


def test_short_steps_have_the_least_limit_and_all_else_its_own(tmp_path, said, now):
    watch = dog(tmp_path, said, least=60.0, others=600.0)
    spend(watch, now, "compiling", 0, 599.0)
    for step in range(1, 4):
        spend(watch, now, "training", step, 0.01)
    spend(watch, now, "training", 4, 59.0)
    spend(watch, now, "validating", 4, 599.0)
    assert said == []
    spend(watch, now, "training", 5, 61.0)
    spend(watch, now, "validating", 6, 601.0)
    assert ["training after step 5" in said[0], "validating after step 6" in said[2]] == [True] * 2


def test_a_folder_that_is_gone_does_not_silence_it(tmp_path, said, now):
    spend(dog(tmp_path / "gone", said), now, "sampling", 7, 1.0)
    assert "sampling after step 7" in said[0] and "can't be written" in said[0]
