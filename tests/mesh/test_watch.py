"""A watch tells a silent process from a stuck one, a busy one, and its own absence."""

import pytest

from jaxgen.errors import DataError
from jaxgen.mesh import pulse
from jaxgen.mesh import watch as watches
from jaxgen.mesh.watch import ROOM, Watch

NAMES = ("process 0 (a, pid 1)", "process 1 (b, pid 2)", "process 2 (c, pid 3)")


class Texts(dict):
    """A `group.Store` in memory."""

    set = dict.__setitem__

    def get(self, key, seconds):
        return super().get(key)

    def find(self, prefix):
        return {key: value for key, value in self.items() if key.startswith(prefix)}

    def delete(self, prefix): ...


@pytest.fixture
def look(monkeypatch):
    """Look once a second; beats: {process: (beat, steps)} that are news. Return the verdict."""
    now = [100.0]
    monkeypatch.setattr(watches.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watches.time, "sleep", lambda seconds: None)
    watch = Watch(0, NAMES, "a:1", timeout=8.0, stall=20.0)
    watch._store = Texts()

    def once(seconds=1.0, **beats):
        now[0] += seconds
        for name, (count, steps) in beats.items():
            watch._store.set(f"{ROOM}/beat/{name[1:]}", f"{count} {steps}")
        once.count += 1
        return watch._poll(once.count)

    once.count, once.watch = 0, watch
    return once


def test_a_process_that_falls_silent_is_named_after_the_timeout_and_not_before(look):
    for beat in range(5):
        assert look(p1=(beat, 0), p2=(beat, 0)) is None
    for beat in range(5, 13):
        assert look(p1=(beat, 0)) is None
    assert look(p1=(13, 0)) == f"5 {NAMES[2]} is lost: nothing was heard of it for 9 s"
    # The others read it.
    assert look.watch._store.find(f"{ROOM}/verdict/")


def test_one_that_never_came_to_life_is_named_too(look):
    found = [look(p1=(beat, 0)) for beat in range(12)]
    assert found[-1] is not None and NAMES[2] in found[-1]


def test_a_pause_of_the_watch_itself_accuses_nobody(look):
    for beat in range(3):
        assert look(p1=(beat, 0), p2=(beat, 0)) is None
    assert look(seconds=3600.0) is None
    assert look(p1=(4, 0), p2=(4, 0)) is None


def test_processes_that_live_but_finish_no_step_end_and_those_behind_are_named(look):
    look.watch.progress()
    for beat in range(21):
        assert look(p1=(beat, 1), p2=(beat, 0)) is None
    found = look(p1=(21, 1), p2=(21, 0))
    assert found == f"5 no process has finished a step for 21 s; behind the others: {NAMES[2]}"


def test_a_step_of_anybody_is_progress_and_preparing_may_take_long(look):
    for beat in range(60):
        assert look(p1=(beat, 0), p2=(beat, 0)) is None
    for beat in range(60, 120):
        if beat % 15 == 0:
            look.watch.progress()
        assert look(p1=(beat, 0), p2=(beat, 0)) is None


def test_what_a_process_says_when_it_ends_is_the_verdict_for_all(look):
    look.watch._store.set(f"{ROOM}/left/1", "5 process 1 (b, pid 2) has ended with exit code 7: x")
    assert look(p1=(1, 0), p2=(1, 0)) == "5 process 1 (b, pid 2) has ended with exit code 7: x"


def test_of_two_ends_at_once_only_the_first_has_a_line(monkeypatch, capsys):
    watch, waits = Watch(1, NAMES, "a:1", timeout=8.0, stall=20.0), []

    def sleep(seconds):
        waits.append(seconds)
        raise InterruptedError  # by the end of the program

    monkeypatch.setattr(watches.time, "sleep", sleep)
    with pytest.raises(DataError), watch.over(Texts()):
        raise DataError("the first end, whose line is still to come")
    with pytest.raises(InterruptedError):
        watch._end("5 the second")
    assert waits == [watches.PARTING] and not capsys.readouterr().err


def test_a_silent_process_whose_child_answers_for_it_is_not_lost(look):
    with pulse.running("127.0.0.1") as address:
        look.watch._store.set(f"{watches.PULSE}/2", address)
        assert [look(p1=(beat, 0)) for beat in range(12)] == 12 * [None]
    assert look(p1=(12, 0)) == f"5 {NAMES[2]} is lost: nothing was heard of it for 12 s"
