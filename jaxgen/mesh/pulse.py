"""A child process that answers for its parent while a native call holds Python's lock.

A compiler or a library of the user's may hold the lock for longer than the others wait for a
heartbeat, and then no thread of the process can send one. The child knows from the system whether
its parent runs. It is this file as a program: it imports nothing but the standard library.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ALIVE = b"alive\n"
LOOK = 1.0  # seconds until the child notices that its parent has gone
START = 10.0  # seconds that it may take to begin


@contextmanager
def running(host: str) -> Iterator[str | None]:
    """Yield "HOST:PORT" where a child answers for this process; None if none can be started.

    host: an address of this machine that the others reach.
    """
    child = address = None
    with suppress(OSError):
        child = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-I", __file__, host],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # a Ctrl-C is not for it
        )
        assert child.stdout is not None
        port = child.stdout.readline().decode().strip()
        address = f"[{host}]:{port}" if port else None
    try:
        yield address
    finally:
        if child is not None:
            child.kill()
            child.wait()


def is_alive(address: str, timeout: float) -> bool:
    """Return whether the process that answers at an address says that its parent runs.

    timeout: seconds; no answer within them is no.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout) as line:
            line.settimeout(timeout)
            return line.recv(len(ALIVE)) == ALIVE
    except (OSError, ValueError):
        return False


def own_address(host: str, port: int) -> str:
    """Return the address of this machine on the way to another; raises OSError without a way."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(address)  # sends nothing
        return way.getsockname()[0]


def answer(host: str) -> None:
    """Print a port, and answer there while the parent of this process is there."""
    parent = os.getppid()
    with socket.create_server((host, 0), family=_family(host)) as door:
        print(door.getsockname()[1], flush=True)
        door.settimeout(LOOK)
        while os.getppid() == parent:
            with suppress(OSError):
                guest, _ = door.accept()
                with guest:
                    if os.getppid() == parent and _runs(parent):
                        guest.sendall(ALIVE)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _runs(pid: int) -> bool:
    """Return whether a process is neither stopped nor a zombie; True where no one can say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "TtZX"
    except OSError:
        return True


if __name__ == "__main__":
    answer(sys.argv[1])
