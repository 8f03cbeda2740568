"""What a run writes down: complete, valid, once per step, and never in the way of training."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from jaxgen import terminal
from jaxgen.train import display, events, log
from jaxgen.train.log import Log

METRICS = {"loss": 2.5, "skipped": 0.0, "tokens_per_second": 12345.0, "mfu": 0.031}


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(folder, steps, **options):
    with Log(folder, total_steps=100, display="off", **options) as writer:
        for step in steps:
            writer.step(step, METRICS | {"loss": 5.0 - step / 100})


def test_each_step_and_validation_is_one_line_of_json(tmp_path):
    with Log(tmp_path, total_steps=100, display="off") as writer:
        writer.step(10, METRICS)
        writer.validation(10, {"loss": 2.6, "perplexity": 13.5, "tokens": 400.0})
    train, valid = records(tmp_path)
    assert (train["step"], train["kind"], train["loss"]) == (10, "train", 2.5)
    assert (valid["step"], valid["kind"], valid["perplexity"]) == (10, "valid", 13.5)
    text = (tmp_path / "log.txt").read_text()
    assert "step 10/100  loss 2.5000" in text
    assert "valid loss 2.6000  perplexity 13.5" in text


def test_numbers_that_are_not_finite_stay_valid_json_and_visible(tmp_path):
    with Log(tmp_path, total_steps=9, display="off") as writer:
        writer.step(1, {"loss": float("nan"), "grad_norm": float("inf"), "mfu": 0.5})
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(line, parse_constant=refuse)
    assert found["loss"] is None and found["mfu"] == 0.5
    assert found["nonfinite"] == {"loss": "nan", "grad_norm": "inf"}


def test_a_resumed_run_has_no_step_twice(tmp_path):
    record(tmp_path, range(10, 60, 10))
    before = records(tmp_path)
    record(tmp_path, range(40, 80, 10), resume_step=30)
    after = records(tmp_path)
    assert [r["step"] for r in after] == [10, 20, 30, 40, 50, 60, 70]
    assert after[:3] == before[:3]
    assert after[3]["seconds"] >= after[2]["seconds"]


def test_a_torn_last_line_is_dropped(tmp_path):
    record(tmp_path, [10, 20])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    record(tmp_path, [20], resume_step=19)
    assert [r["step"] for r in records(tmp_path)] == [10, 20]


def test_a_damaged_line_in_the_middle_costs_only_itself(tmp_path):
    record(tmp_path, [10, 20, 30])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff{half\n" + lines[2])
    record(tmp_path, [40], resume_step=30)
    assert [r["step"] for r in records(tmp_path)] == [10, 30, 40]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_lines_follow_a_torn_line_of_the_log_on_a_new_line(tmp_path):
    (tmp_path / "log.txt").write_text("half a li")
    with Log(tmp_path, total_steps=9, display="off") as writer:
        writer.say("hello")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0] == "half a li" and lines[-1].endswith("hello")


def test_what_a_failed_write_left_is_cut_off_again(tmp_path):
    lines = log._Lines(tmp_path / "file")
    lines.write(b"one\n")
    with (tmp_path / "file").open("ab") as other:  # as if the disk filled in mid-line
        other.write(b"tw")
    lines.write(b"three\n")
    assert (tmp_path / "file").read_bytes() == b"one\nthree\n"


def test_samples_of_a_step_share_a_file_and_a_redone_step_replaces_it(tmp_path):
    for _ in range(2):
        with Log(tmp_path, total_steps=9, display="off") as writer:
            writer.text(5, "The", " end\n\ud800")
            writer.text(5, "A", " start")
    text = (tmp_path / "samples" / "5.txt").read_text()
    assert text == "=== The\n end\n?\n\n=== A\n start\n\n"


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with Log(tmp_path, total_steps=50, display="plain") as writer:
        for step in range(20):
            writer.step(step, METRICS)
    shown = capsys.readouterr().out
    assert shown.count("metrics.jsonl can't be written (No space left on device)") == 1
    assert "step 19/50" in shown and "step 19/50" in (tmp_path / "log.txt").read_text()


def test_a_vanished_folder_is_a_warning_only(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with Log(tmp_path / "file" / "run", total_steps=5, display="plain") as writer:
        writer.step(1, METRICS)
        writer.text(1, "a", "b")
    shown = capsys.readouterr().out
    assert "step 1/5" in shown and shown.count("warning: metrics.jsonl") == 1


def test_a_settled_log_is_as_far_as_the_run_and_a_stalled_disk_holds_it_up_for_a_moment_only(
    tmp_path, monkeypatch
):
    gate, write = threading.Event(), log._Lines.write

    def slow(lines, line):
        gate.wait(0.02)
        write(lines, line)

    monkeypatch.setattr(log._Lines, "write", slow)
    with Log(tmp_path, total_steps=100, display="off") as writer:
        for step in range(1, 11):
            writer.step(step, METRICS)
        writer.settle()
        assert [row["step"] for row in records(tmp_path)] == list(range(1, 11))
        monkeypatch.setattr(log, "SETTLING_SECONDS", 0.05)
        monkeypatch.setattr(log._Lines, "write", lambda lines, line: gate.wait(30))
        writer.step(11, METRICS)
        writer.settle()
        assert not gate.is_set()
        gate.set()


def test_an_owed_validation_is_removed_with_what_comes_after_the_checkpoint(tmp_path):
    for pending in (False, True):
        record(tmp_path, range(1, 5))
        with Log(tmp_path, total_steps=100, resume_step=2, display="off") as writer:
            writer.validation(2, {"loss": 2.6})
            writer.step(3, METRICS)
        with Log(
            tmp_path,
            total_steps=100,
            resume_step=2,
            validation_pending=pending,
            display="off",
        ):
            pass
        found = [(row["step"], row["kind"]) for row in records(tmp_path)]
        assert found == [
            (1, "train"),
            (2, "train"),
            *([] if pending else [(2, "valid")]),
        ]
        (tmp_path / "metrics.jsonl").unlink()


def test_a_stalled_disk_does_not_stall_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(log, "CLOSING_SECONDS", 0.2)
    monkeypatch.setattr(log, "WAITING", 8)
    os.mkfifo(tmp_path / "metrics.jsonl")  # opening it blocks until somebody reads
    done = threading.Event()

    def train():
        with Log(tmp_path, total_steps=50, display="plain") as writer:
            for step in range(30):
                writer.step(step, METRICS)
        done.set()

    threading.Thread(target=train, daemon=True).start()
    assert done.wait(10), "training waited for the disk"
    assert "the disk does not answer" in capsys.readouterr().out


def test_a_closed_standard_output_does_not_end_training(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from jaxgen.train.log import Log\n"
        "with Log(pathlib.Path(sys.argv[1]), total_steps=9, display='plain') as log:\n"
        "    [log.step(i, {'loss': 1.0}) for i in range(10)]\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert [r["step"] for r in records(tmp_path)] == list(range(10))
    assert (tmp_path / "log.txt").read_text().count("standard output is lost") == 1


def test_a_lost_terminal_does_not_end_training(tmp_path, monkeypatch):
    controller, terminal = pty.openpty()
    stream = os.fdopen(terminal, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    with Log(tmp_path, total_steps=9, display="auto") as writer:
        assert isinstance(writer.display, display.Live)
        writer.step(1, METRICS)
        os.close(controller)
        writer.step(2, METRICS)
        writer.say("still here")
    assert "still here" in (tmp_path / "log.txt").read_text()
    assert [r["step"] for r in records(tmp_path)] == [1, 2]


def test_the_bar_shows_loss_speed_and_skipped_steps_and_prints_samples_above():
    stream = io.StringIO()
    bar = display.Live(100, 0, stream)
    bar.console.width = 120
    bar.update(
        display.Reading(step=50, total=100, loss=2.5, valid=2.6, mfu=0.031, eta=75.0, skipped=2)
    )
    bar.text(50, "The", "import [bold]statement\x1b[31m")
    bar.close()
    shown = stream.getvalue()
    for part in ("50/100", "loss 2.5000", "valid 2.6000", "MFU 3.1%", "1:15 left", "2 skipped"):
        assert part in shown
    assert "import [bold]statement␛[31m" in shown


def test_the_bar_ends_with_the_last_validation(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with Log(tmp_path, total_steps=9, display="live") as writer:
        writer.display.console.width = 120
        writer.step(9, METRICS)
        writer.validation(9, {"loss": 1.2345})
    assert "9/9" in stream.getvalue() and "valid 1.2345" in stream.getvalue()


def test_steps_left_are_timed_from_the_end_of_the_first_step(tmp_path, monkeypatch):
    now = iter([0.0, 60.0, 60.0, 70.0, 70.0])  # a minute of compiling, then a second a step
    monkeypatch.setattr(log.time, "monotonic", lambda: next(now, 70.0))
    monkeypatch.setattr(events, "installed", lambda: False)
    with Log(tmp_path, total_steps=111, display="off") as writer:
        writer.step(1, METRICS)
        assert writer.reading.eta is None
        writer.step(11, METRICS)
        assert writer.reading.eta == pytest.approx(100.0)


def test_absent_tensorboard_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(events, "find_spec", lambda name: None)
    with Log(tmp_path, total_steps=5, display="plain") as writer:
        writer.step(1, METRICS)
    assert capsys.readouterr().out.count('pip install "jaxgen[track]"') == 1
    assert not (tmp_path / "events").exists()


def test_events_hold_every_scalar_and_sample(tmp_path):
    pytest.importorskip("tensorboardX")
    with Log(tmp_path, total_steps=5, display="off") as writer:
        writer.step(1, METRICS)
        writer.validation(1, {"loss": 2.0})
        writer.text(1, "The", "sample text")
    (path,) = (tmp_path / "events").iterdir()
    raw = path.read_bytes()
    for part in (b"train/loss", b"valid/loss", b"train/mfu", b"sample text"):
        assert part in raw


LATE = display.Reading(
    step=1200,
    total=200_000,
    loss=2.5,
    valid=2.6,
    tokens_per_second=123_456.0,
    mfu=0.314,
    eta=45_296.0,
    skipped=12,
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [120, 100, 80, 70, 40])
@pytest.mark.parametrize(
    "reading", [LATE, display.Reading(step=0, total=7), replace(LATE, eta=5.0)]
)
def test_the_bar_is_one_line_that_never_wraps_and_keeps_the_loss(
    width, reading, encoding, monkeypatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws no bar but for a terminal
    monkeypatch.setenv("COLUMNS", str(width))
    raw = io.BytesIO()
    bar = display.Live(reading.total, 0, io.TextIOWrapper(raw, encoding))
    bar.update(reading)
    bar.wait("compiling", 12.0)
    bar.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw.getvalue().decode(encoding))
    drawn = [line for line in shown.split("\r") if f"{reading.step}/{reading.total}" in line]
    assert drawn and all(len(line.strip("\n")) <= width and "\n" not in line[:-1] for line in drawn)
    assert len(drawn) >= 3 and "compiling 0:12" in drawn[-1]
    if reading.loss is not None:
        assert any("loss 2.5000" in line and "12 skipped" in line for line in drawn)
        assert any("MFU" in line for line in drawn) == (width >= 100)


def test_why_a_step_is_skipped_is_in_line_bar_and_metrics(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    for kind in ("plain", "live"):
        with Log(tmp_path / kind, total_steps=9, display=kind) as writer:
            writer.step(3, METRICS | {"skipped": 1.0, "cause": "the gradient is not finite"})
            writer.step(4, METRICS | {"skipped": 1.0})
        assert [row.get("cause") for row in records(tmp_path / kind)] == [
            "the gradient is not finite",
            None,
        ]
        text = (tmp_path / kind / "log.txt").read_text()
        assert text.count("is skipped: the gradient is not finite") == 1
    assert stream.getvalue().count("is skipped: the gradient is not finite") == 2


@pytest.mark.parametrize(
    ("kind", "said"), [("plain", "compiling: 0 s\n"), ("live", "compiling 0:0")]
)
def test_what_takes_long_gives_signs_of_life(tmp_path, monkeypatch, kind, said):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    for name in ("EACH", "FIRST", "THEN"):
        monkeypatch.setattr(terminal, name, 0.01)
    with Log(tmp_path, total_steps=9, display=kind) as writer:
        with writer.waiting("compiling"):
            deadline = time.monotonic() + 20
            while said not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.01)
        writer.step(1, METRICS)
        shown = stream.getvalue()
        with writer.waiting("validating"):
            pass
        after = stream.getvalue().removeprefix(shown)
    assert said in shown and "loss 2.5000" in shown.rpartition("compiling")[2]
    if kind == "live":
        assert "loss 2.5000" in after.rpartition("validating")[2]


@pytest.mark.parametrize(
    ("number", "words"), [(950.0, "950"), (12345.0, "12.3k"), (999_950.0, "1M"), (1.254e6, "1.25M")]
)
def test_counts_are_short(number, words):
    assert display.short(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(6.6, "0:07"), (3723.0, "1:02:03"), (273906.0, "3d 4:05:06"), (-1.0, "0:00")],
)
def test_times_read_as_people_write_them(seconds, words):
    assert display.duration(seconds) == words
