"""One process at a time in a run's folder, and no lock outlives its process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxgen.errors import BusyError
from jaxgen.store.lock import RunLock

HOLD = """
import sys, time
from jaxgen.store.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


def test_a_second_process_is_turned_away_at_once_with_the_owners_name(tmp_path, owner):
    begin = time.monotonic()
    with pytest.raises(BusyError, match=f"in use by process {owner.pid} on .+ since 20") as caught:
        RunLock(tmp_path).__enter__()
    assert time.monotonic() - begin < 2
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_a_lock_vanishes_with_a_killed_process(tmp_path, owner):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert json.loads((tmp_path / "LOCK").read_text())["pid"] == owner.pid
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "LOCK").read_text())["pid"] == os.getpid()


def test_a_record_with_a_reused_pid_locks_nobody_out(tmp_path):
    record = {"pid": os.getpid(), "host": "here", "started": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "LOCK").write_text(json.dumps(record))
    with RunLock(tmp_path):
        pass


def test_a_lock_can_be_taken_again_when_it_is_released_and_not_before(tmp_path):
    for _ in range(2):
        with RunLock(tmp_path), pytest.raises(BusyError, match=f"process {os.getpid()}"):
            RunLock(tmp_path).__enter__()


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    program = HOLD.replace(
        'print("held", flush=True)',
        'import os\n    if os.fork() == 0:\n        print("held", flush=True)\n',
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout.readline() == "held\n"
        parent.kill()
        parent.wait()
        with RunLock(tmp_path):
            pass
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()


def test_an_owner_without_a_record_is_still_an_owner(tmp_path, owner):
    (tmp_path / "LOCK").write_text("")
    with pytest.raises(BusyError, match="in use by another process"):
        RunLock(tmp_path).__enter__()


@pytest.mark.parametrize("name", ["file", "file/below", "loop"])
def test_a_folder_that_cannot_be_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BusyError, match=name) as caught:
        RunLock(tmp_path / name).__enter__()
    assert "\n" not in str(caught.value)
