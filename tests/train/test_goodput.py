"""Where the time of a run went: each moment once, what was done in vain as lost."""

import pytest

from jaxgen.train import goodput, log


def begin(clock, step, seen=None):
    return {"clock": clock, "step": step, "seen": seen}


KILLED = [
    begin(100.0, 0),
    {"clock": 110.0, "step": 5, "starting": 4.0, "training": 6.0},
    {"clock": 120.0, "step": 10, "saving": 1.0, "training": 9.0},
]
GOES_ON = {"clock": 160.0, "step": 8, "starting": 5.0, "training": 5.0}


@pytest.mark.parametrize(
    ("following", "expected"),
    [
        # Step 10 is the newest checkpoint: what is lost are the 3 s until the last sign of life.
        ((10, 123.0), {"training": 20.0, "lost": 3.0, "stopped": 27.0}),
        # Step 5 is: the steps after it were made in vain.
        ((5, 123.0), {"training": 11.0, "lost": 12.0, "stopped": 27.0}),
        # Signs of life from before the last line, or from the future, are none.
        ((10, 50.0), {"training": 20.0, "stopped": 30.0}),
        ((10, 999.0), {"training": 20.0, "lost": 30.0}),
        ((10, None), {"training": 20.0, "stopped": 30.0}),
    ],
)
def test_steps_after_the_checkpoint_that_a_run_goes_on_from_are_lost(following, expected):
    step, seen = following
    rows = [*KILLED, begin(150.0, step, seen), GOES_ON | {"step": step + 3}]
    seconds = goodput.spent(rows)
    assert seconds == expected | {"starting": 9.0, "saving": 1.0}
    assert sum(seconds.values()) == pytest.approx(rows[-1]["clock"] - rows[0]["clock"])
    assert goodput.goodput(seconds) == pytest.approx(expected["training"] / 60)


def test_a_pause_after_an_orderly_end_is_nobodys_time():
    ended = {"clock": 121.0, "step": 10, "end": True, "saving": 1.0}
    seconds = goodput.spent([*KILLED, ended, begin(1000.0, 10, 121.0), {"clock": 1004.0,
        "step": 12, "training": 4.0}])  # fmt: skip
    assert seconds == {"starting": 4.0, "training": 19.0, "saving": 2.0}
    assert goodput.describe(seconds) == "goodput 76.0 % of 0:25 (starting 16.0 %, saving 8.0 %)"


def test_each_moment_belongs_to_the_innermost_phase(monkeypatch):
    now, rows = [0.0], []
    monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(goodput.time, "time", lambda: 1000.0 + now[0])
    clock = goodput.Stopwatch()
    now[0] += 2
    clock.begin(rows.append, 4, None)
    clock.begin_steps()
    with clock.phase("training"):
        now[0] += 3
        with clock.phase("validating"):
            now[0] += 5
        now[0] += 1
        clock.record(7)
        now[0] += 1
    now[0] += 0.5
    clock.record(8, end=True)
    assert rows == [
        begin(1000.0, 4),
        {"clock": 1011.0, "step": 7, "starting": 2.0, "training": 4.0, "validating": 5.0},
        {"clock": 1012.5, "step": 8, "end": True, "training": 1.0, "other": 0.5},
    ]


def test_torn_lines_and_a_run_without_times_are_no_obstacle(tmp_path):
    assert goodput.read_times(tmp_path) == [] and goodput.goodput(goodput.spent([])) == 0.0
    (tmp_path / log.TIMES).write_bytes(b'{"clock": 1.0, "step": 0, "seen": null}\n{"clo')
    assert goodput.read_times(tmp_path) == [begin(1.0, 0)]
    assert goodput.last_sign(tmp_path) == (tmp_path / log.TIMES).stat().st_mtime
