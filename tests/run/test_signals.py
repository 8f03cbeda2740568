"""Being told to stop, wherever the main thread is; each case in a process without JAX."""

import os
import signal
import subprocess
import sys
import time

import pytest

BEGIN = """
import hashlib, os, sys, time
from jaxgen.errors import CheckpointError
from jaxgen.run.signals import StopRequest

def stuck():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)

def wait(stop):
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("told", flush=True)

def save():
    print("saved", flush=True)

def refuse():
    raise CheckpointError("the disk is full")

with StopRequest(grace=0.2) as stop:
"""
CASES = {
    "Python code with nothing to save is left at once": (
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n        print('cleaned')",
        (75, "ready cleaned", 1),
    ),
    "C code with nothing to save is left after a moment": ("    stuck()", (75, "ready", 1)),
    "a block that looks ends by itself, however long it takes": (
        "    with stop.polling():\n        wait(stop); time.sleep(1); print('ended')\n"
        "    time.sleep(0.5); print('after'); sys.exit(75)",
        (75, "ready told ended after", 0),
    ),
    "where nobody can look, somebody else saves": (
        "    with stop.polling(), stop.rescue(save):\n        stuck()",
        (75, "ready saved", 0),
    ),
    "a block that is left in time is not rescued": (
        "    with stop.polling():\n        with stop.rescue(save):\n            wait(stop)\n"
        "        time.sleep(0.5); print('ended')",
        (0, "ready told ended", 0),
    ),
    "a rescue that is refused ends with the code of its error": (
        "    with stop.polling(), stop.rescue(refuse):\n        stuck()",
        (4, "ready", 1),
    ),
    "a signal in time for the next block is not forgotten": (
        "    with stop.polling():\n        wait(stop)\n    with stop.polling():\n"
        "        print('never')",
        (75, "ready told", 1),
    ),
    "a child keeps the usual signals": (
        "    child = os.fork()\n    if not child:\n"
        "        os.kill(os.getpid(), 15); time.sleep(5); os._exit(9)\n"
        "    assert os.waitpid(child, 0)[1] == 15 and not stop()\n"
        "    with stop.polling():\n        wait(stop)",
        (0, "ready told", 0),
    ),
}


def start(program, begin=BEGIN):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", begin + program], **pipes)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("case", CASES)
def test_a_signal_is_answered_wherever_it_comes(case, number):
    program, (code, words, lines) = CASES[case]
    process = start(program)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, ["ready", *out.split()]) == (code, words.split()), err
    assert err.count("\n") == lines and "Traceback" not in err, err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_second_signal_ends_it_at_once_even_in_c_code(number, code):
    process = start("    with stop.polling():\n        stuck()")
    process.send_signal(number)
    time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert err.startswith("interrupted twice: ") and err.count("\n") == 1
    assert time.monotonic() - began < 10


def test_a_signal_that_comes_twice_at_once_is_one():
    program = "    with stop.polling():\n        wait(stop); time.sleep(0.5); print('ended')"
    process = start(program, BEGIN.replace("grace=0.2", "grace=0.2, same=60.0"))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "told\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_signals_are_as_they_were_afterwards():
    from jaxgen.run.signals import StopRequest

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    open_files = len(os.listdir("/proc/self/fd"))
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._note
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    end = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > open_files and time.monotonic() < end:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= open_files and not stop()
