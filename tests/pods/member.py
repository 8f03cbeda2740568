"""A process of a group that does one thing: member.py HOST:PORT COUNT INDEX DEED."""

import ctypes
import os
import signal
import sys
import time

from jaxgen.cli import launch
from jaxgen.errors import DataError

PEERS = 4.0  # seconds of silence after which a process is taken for lost


def deed(name: str, group) -> None:
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "freezes":
        os.kill(os.getpid(), signal.SIGSTOP)
    if name == "fails":
        raise DataError("text.txt is empty; give more text")
    if name == "breaks":
        raise RuntimeError("a bug")
    if name == "told":
        raise SystemExit(75)
    if name == "holds":  # Python's lock, for longer than the others wait for a heartbeat
        ctypes.PyDLL(None).sleep(3 * int(PEERS))
        group.barrier("end")
    if name == "waits":
        group.barrier("end")
    if name == "sleeps":
        time.sleep(60)


def main(address: str, count: int, index: int, name: str) -> None:
    flags = launch.Flags(
        coordinator=address, processes=count, process=index, start_timeout=30.0, peer_timeout=PEERS
    )
    with launch.group(flags) as group:
        if name == "vanishes":  # while the others wait for its answer
            os.kill(os.getpid(), signal.SIGKILL)
        group.barrier("begin")
        deed(name, group)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
