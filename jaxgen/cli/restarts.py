"""`jaxgen train --restarts N`: training that ends for a reason that may pass is started again.

The training runs in a process of its own, so that nothing it can die of ends this one.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxgen import terminal
from jaxgen.errors import BUG, PREEMPTED, BusyError, PeerError

OPTION, JAXGEN = "--restarts", (sys.executable, "-m", "jaxgen")
SUPERVISED = "JAXGEN_SUPERVISED"  # set in the process that trains
# Seconds in which a second signal counts as the first: a scheduler tells both processes to stop,
# and this one tells the other.
SAME_SIGNAL = 1.0
# Exit codes of what may pass: a lost process, a device that failed (which JAX raises as an error
# of its own), and once something has been trained, a disk or a memory that was full.
TRANSIENT = (PeerError.exit_code, BUG)
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled while no step is saved in between
SET_PDEATHSIG = 1  # of Linux's prctl


def this_command() -> list[str]:
    """Return the command line of this process without --restarts and its number."""
    words = sys.argv[1:]
    while OPTION in words:
        del words[words.index(OPTION) : words.index(OPTION) + 2]
    return [*JAXGEN, *(word for word in words if not word.startswith(f"{OPTION}="))]


def supervise(
    first: Sequence[str], later: Callable[[], Sequence[str]], folder: Path, restarts: int
) -> int:
    """Train until it ends for good, or has been started again so often; return its exit code.

    first: the command line of the first start; later: gives that of the others. A signal is passed
    on, and then nothing is started again.
    """
    command, begun, failures, left = first, _newest(folder), 0, restarts
    with _passing_signals_on() as (stop_requested, children):
        while True:
            code = _run(command, stop_requested, children)
            newest = _newest(folder)
            passing = code < 0 or code in TRANSIENT or (code == BusyError.exit_code and newest)
            if stop_requested.is_set() or not passing:
                return 128 - code if code < 0 else code
            saved = f"step {newest} is saved" if newest else "no step is saved"
            ended = f"training ended with {_describe(code)}; {saved}"
            if not left:
                terminal.say(f"{ended}; started again {restarts} times, as --restarts has it")
                return 128 - code if code < 0 else code
            failures = failures + 1 if newest == begun else 1
            begun, command, left = newest, later(), left - 1
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1))
            wait *= random.uniform(0.5, 1.5)  # noqa: S311 - so that many don't come at once
            terminal.say(f"{ended}; starting again in {wait:.1f} s ({left} more after that)")
            if stop_requested.wait(wait):
                return PREEMPTED


def _run(
    command: Sequence[str], stop_requested: threading.Event, children: list[subprocess.Popen]
) -> int:
    process = subprocess.Popen(  # noqa: S603 - ourselves
        command,
        env=os.environ | {SUPERVISED: "1"},
        process_group=0,  # else a Ctrl-C would reach it twice
        preexec_fn=_end_with_parent,
    )
    children[:] = [process]
    if stop_requested.is_set():  # while it was being started
        process.terminate()
    return process.wait()


@contextmanager
def _passing_signals_on() -> Iterator[tuple[threading.Event, list[subprocess.Popen]]]:
    """Yield (whether a signal has come, the processes that signals are passed on to)."""
    stop_requested, children = threading.Event(), []

    def pass_on(number: int, _: object) -> None:
        stop_requested.set()
        for process in children:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop_requested, children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Have Linux tell the process to stop when the one that watches over it is killed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGTERM)


def _newest(folder: Path) -> int:
    from jaxgen.run.folder import CHECKPOINTS
    from jaxgen.store import directory

    return max(directory.list_steps(folder / CHECKPOINTS), default=0)


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {-code} ({signal.Signals(-code).name})"
