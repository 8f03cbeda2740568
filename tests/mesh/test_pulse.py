"""A child answers for its parent while that runs, whatever the parent's threads do."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from jaxgen.mesh import pulse

PARENT = """
import sys, time
from jaxgen.mesh import pulse
with pulse.running(sys.argv[1]) as address:
    print(address, flush=True)
    time.sleep(60)
"""


def dead_by(address, seconds):
    end = time.monotonic() + seconds
    while pulse.is_alive(address, 1.0) and time.monotonic() < end:
        time.sleep(0.05)
    return not pulse.is_alive(address, 1.0)


def listens(address):
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), 1.0):
        return True
    return False


def test_the_child_answers_for_a_running_parent_and_not_for_a_stopped_or_a_dead_one():
    host = pulse.own_address("127.0.0.1", 1)
    command = [sys.executable, "-c", PARENT, host]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = parent.stdout.readline().strip()
    assert pulse.is_alive(address, 5.0)
    parent.send_signal(signal.SIGSTOP)
    assert dead_by(address, 5.0)
    parent.send_signal(signal.SIGCONT)
    end = time.monotonic() + 5
    while not pulse.is_alive(address, 1.0) and time.monotonic() < end:
        time.sleep(0.05)
    assert pulse.is_alive(address, 1.0)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while listens(address) and time.monotonic() < end:
        time.sleep(0.05)
    assert not listens(address)  # the child has gone as well


def test_the_child_goes_with_the_block_and_where_nobody_listens_nobody_lives():
    with pulse.running("127.0.0.1") as address:
        assert pulse.is_alive(address, 5.0)
    assert not pulse.is_alive(address, 1.0)
    assert not pulse.is_alive("nowhere", 1.0)
    with pulse.running("203.0.113.1") as address:  # no address of this machine
        assert address is None
