"""`jaxgen train --restarts`: a run that is killed goes on by itself, and counts what that cost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxgen.cli import restarts
from jaxgen.train import goodput

CHILD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
starts = folder / "starts"
count = len(starts.read_text().split()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(" ".join(sys.argv[2:]) + " ")
todo = {PLAN}[min(count, len({PLAN}) - 1)]
if todo == "wait":
    print("ready", flush=True)
    time.sleep(60)
if isinstance(todo, str):
    (folder / "checkpoints" / f"{count + 1:08}").mkdir(parents=True)
    todo = int(todo)
if todo < 0:
    os.kill(os.getpid(), -todo)
sys.exit(todo)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Return the command of a child that ends, start by start, as a plan says."""
    monkeypatch.setattr(restarts, "FIRST_WAIT", 0.01)

    def command(plan):
        program = tmp_path / "child.py"
        program.write_text(CHILD.replace("{PLAN}", repr(plan)))
        return [sys.executable, str(program), str(tmp_path)]

    return command


@pytest.mark.parametrize(
    ("plan", "count", "code", "starts"),
    [
        ([0], 3, 0, ["first"]),
        ([-9, -11, 5, 70, 0], 9, 0, ["first", *4 * ["later"]]),
        ([-9], 2, 137, ["first", "later", "later"]),  # again and again
        ([2], 9, 2, ["first"]),  # a mistake stays one
        ([-9, 7], 9, 7, ["first", "later"]),
        ([75], 9, 75, ["first"]),  # somebody has told it to stop
        ([3], 9, 3, ["first"]),  # nothing is trained yet, as where another run holds the folder
        (["3", 0], 9, 0, ["first", "later"]),  # the disk was full for a while
    ],
)
def test_what_may_pass_is_started_again(plan, count, code, starts, child, capfd, tmp_path):
    command = child(plan)
    later = [*command, "later"]
    assert restarts.supervise([*command, "first"], lambda: later, tmp_path, count) == code
    assert (tmp_path / "starts").read_text().split() == starts
    said = capfd.readouterr().err
    assert said.count("starting again in") == len(starts) - 1
    if code == 137:
        assert "ended with signal 9 (SIGKILL); no step is saved; started again 2 times" in said


def test_a_signal_is_passed_on_and_ends_it(child, tmp_path):
    program = (
        "import pathlib, sys; from jaxgen.cli import restarts; command = sys.argv[1:]; "
        "again = lambda: restarts.supervise(command, lambda: command, pathlib.Path(command[2]), 9);"
        "print(again(), flush=True); print(again(), flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *child(["wait"])], stdout=subprocess.PIPE, text=True
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{128 + number}\n"
    assert process.wait(30) == 0
    assert len((tmp_path / "starts").read_text()) <= 2


def test_a_killed_run_goes_on_unattended_and_says_what_that_cost(config, cache, tmp_path):
    folder = tmp_path / "run"
    words = ["train", str(config), "--out", str(folder), "--restarts=3", "checkpoint.every=2"]
    words += ["train.steps=16", "train.log_every=1", "sample.prompts=[]", "model.layers=1"]
    words += ["train.accumulate=1", "train.validate_every=16", "model.dropout=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxgen", *words],
        env=os.environ | {"JAXGEN_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and not list(folder.glob("checkpoints/*/")):
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "ended with signal 9 (SIGKILL)" in said and "(2 more after that)" in said
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert sorted(steps) == steps
    records = goodput.read_times(folder)
    seconds = goodput.spent(records)
    assert sum("seen" in record for record in records) == 2 and seconds["stopped"] > 0
    wall = records[-1]["clock"] - records[0]["clock"]
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.01)
    # It is said before the end itself is written down.
    assert goodput.describe(goodput.spent(records[:-1])) in said
