"""Killed at any moment, or with the disk full: the steps that were sound stay sound."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import forked
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import BusyError, CheckpointError
from jaxgen.store import Checkpoints, arrays

WRITER = Path(__file__).with_name("crash_program.py")
LIKE = {"w": np.zeros(1 << 18, int), "n": 0}


def start(folder, failpoint="none", first=1):
    return forked.program([WRITER, folder, failpoint, first, 2_000])


def open_at(folder, **others):
    return Checkpoints(folder, **{"keep_last": 2, "keep_best": 0, "fingerprints": {}} | others)


def assert_sound(folder):
    """Every step on disk is sound and exact; return the steps."""
    checkpoints = open_at(folder)
    steps = checkpoints.steps()
    assert steps
    for step in steps:
        assert checkpoints.verify(step) == []
        found = checkpoints.restore(LIKE, step=step)
        assert (found.tree["w"] == step).all() and found.tree["n"] == step
        assert found.extra == {"at": step} and found.warnings == []
    checkpoints.clean()
    assert sorted(path.name for path in folder.iterdir()) == [f"{step:08d}" for step in steps]
    return steps


STAGES = {
    "begin": [2, 3],
    "arrays": [2, 3],
    "manifest": [2, 3],
    "renamed": [2, 3, 4],
    "renamed away": [3, 4],
    "retired": [3, 4],
}


def test_killed_at_each_stage_of_a_save_the_old_or_the_new_step_is_there(tmp_path):
    folders = {stage: tmp_path / str(i) / "checkpoints" for i, stage in enumerate(STAGES)}
    children = {stage: start(folder, stage) for stage, folder in folders.items()}
    for stage, child in children.items():
        code, said = child.end(60)
        assert code == -signal.SIGKILL, said
        assert assert_sound(folders[stage]) == STAGES[stage], stage


def test_killed_at_random_while_it_saves_nothing_but_the_last_save_is_lost(tmp_path):
    folder, chance, reached, left = tmp_path / "checkpoints", random.Random(0), 0, 0
    for _ in range(6):
        child = start(folder, first=reached + 1)
        while child.said().count("\n") < 2:
            assert child.poll() is None, child.said()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        printed = child.end()[1].split()
        left += len(list(folder.glob(".tmp-*")))
        reached = assert_sound(folder)[-1]
        # A step is printed when its save has begun, so the one before was complete.
        assert not printed or reached >= int(printed[-1]) - 1
    assert reached >= 6
    assert left, "no kill came in the middle of a save"


def test_a_save_under_way_when_the_program_ends_leaves_no_trace(tmp_path):
    done = subprocess.run(
        [sys.executable, WRITER, tmp_path / "checkpoints", "none", "1", "1"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(os.listdir(tmp_path / "checkpoints")) <= {"00000001"}


def first_save(folder):
    checkpoints = open_at(folder)
    checkpoints.save(1, {"w": jnp.ones(4)}, {}, metric=None)
    checkpoints.wait()
    return checkpoints


def assert_first_only(folder):
    assert os.listdir(folder) == ["00000001"]
    assert open_at(folder).verify(1) == []


def until_raised(poll):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        poll()
        time.sleep(0.01)


def test_too_little_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = first_save(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2048))
    with pytest.raises(
        CheckpointError, match=r"disk is full, step 2 .* 2.0 KiB are free"
    ) as caught:
        checkpoints.save(2, {"w": jnp.ones(4)}, {}, metric=None)
    assert caught.value.exit_code == 4
    assert r"(steps on disk: 1)" in str(caught.value)
    assert_first_only(tmp_path)


LIMITED = """
import resource, sys, time
import numpy as np
from jaxgen.errors import CheckpointError
from jaxgen.store import Checkpoints

store = Checkpoints(sys.argv[1], keep_last=1, keep_best=0, fingerprints={})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
store.save(2, {"w": np.random.default_rng(0).random(1 << 17)}, {}, metric=None)
try:
    for _ in range(2000):
        store.poll()
        time.sleep(0.01)
except CheckpointError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_surfaces_at_the_next_poll(tmp_path):
    first_save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True
    )
    assert "the disk is full, step 2 is not saved" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""
    assert_first_only(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_during_a_save_surfaces_at_the_next_poll(small_disk, capfd):
    checkpoints = first_save(small_disk)
    # The first step was small, so the room asked for beforehand is small too.
    checkpoints.save(2, {"w": np.random.default_rng(0).random(1 << 20)}, {}, metric=None)
    with pytest.raises(CheckpointError, match="the disk is full, step 2 is not saved") as caught:
        until_raised(checkpoints.poll)
    assert "\n" not in str(caught.value)
    assert_first_only(small_disk)
    checkpoints.poll()
    checkpoints.save(3, {"w": jnp.ones(4)}, {}, metric=None)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "number, kind, words",
    [
        (errno.EIO, BusyError, "the disk reports an error"),
        (errno.EROFS, BusyError, "read-only file system"),
        (errno.EDQUOT, CheckpointError, "disk is full"),
    ],
)
def test_a_failing_disk_surfaces_once_and_in_one_line(tmp_path, monkeypatch, number, kind, words):
    checkpoints = first_save(tmp_path)

    def fail(folder, found):
        folder.mkdir()
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(arrays, "write_arrays", fail)
    checkpoints.save(2, {"w": jnp.ones(4)}, {}, metric=None)
    with pytest.raises(kind, match=words):
        checkpoints.wait()
    checkpoints.poll()
    checkpoints.wait()
    assert_first_only(tmp_path)


def test_a_vanished_folder_is_told_in_one_line(tmp_path):
    checkpoints = open_at(tmp_path / "run" / "checkpoints")
    (tmp_path / "file").write_text("text")
    checkpoints.save(1, {"w": jnp.ones(4)}, {}, metric=None)
    checkpoints.wait()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").symlink_to(tmp_path / "file")
    with pytest.raises(BusyError, match="is or lies below a file") as caught:
        checkpoints.save(2, {"w": jnp.ones(4)}, {}, metric=None)
    assert "\n" not in str(caught.value)


def test_saving_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(
        arrays,
        "write_arrays",
        lambda *given, write=arrays.write_arrays: gate.wait(20) and write(*given),
    )
    checkpoints = open_at(tmp_path)
    checkpoints.save(1, {"w": jnp.ones(4)}, {}, metric=None)
    checkpoints.poll()
    assert checkpoints.steps() == []
    gate.set()
    checkpoints.wait()
    assert checkpoints.steps() == [1]


def test_a_reader_survives_the_deletion_of_the_step_it_reads(tmp_path, monkeypatch):
    writer, reader = first_save(tmp_path), open_at(tmp_path)
    writer.keep_last = 1
    genuine, passed = arrays.read_arrays, []

    def overtaken(folder, leaves):
        if not passed:
            passed.append(folder)
            writer.save(2, {"w": jnp.zeros(4)}, {}, metric=None)
            writer.wait()
        return genuine(folder, leaves)

    monkeypatch.setattr(arrays, "read_arrays", overtaken)
    found = reader.restore({"w": jnp.ones(4)})
    assert found.step == 2 and found.warnings == []
