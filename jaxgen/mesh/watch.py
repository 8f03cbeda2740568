"""A thread that ends this process when another one is lost, and names it.

A collective on devices waits for ever for a process that has died, hence the thread. Each process
sends a heartbeat every few seconds; process 0 reads all of them and publishes a verdict, which the
others read. There are four cases: a process that reports why it ends; a silent one, for which no
child answers either (`pulse`); one that is alive but stuck, so that no process finishes a step; and
the loss of process 0 with JAX's coordination service: then JAX aborts the program, and a handler of
that signal prints the error.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jaxgen.errors import PeerError, UserError
from jaxgen.mesh import pulse
from jaxgen.mesh.group import AgreedExit, Store

ROOM = "jaxgen/watch"
VERDICT = f"{ROOM}/verdict/0"  # the lost process, published by process 0
PULSE = f"{ROOM}/pulse"  # where a child answers for each process
AGAIN = "start all processes again: the run goes on from its newest checkpoint"
ASKING = 2.0  # seconds that a child has to answer, where a beat is shorter
BEATS = 8  # heartbeats within the timeout
PARTING = 5.0  # seconds that process 0 stays for the others to read why it ends


class Watch:
    """Watches the processes of a group from one of them, while `over` is entered."""

    def __init__(
        self, index: int, names: tuple[str, ...], address: str, *, timeout: float, stall: float
    ) -> None:
        self.index, self.names = index, names
        self.coordinator = f"{names[0]}, the coordinator at {address},"
        self.timeout, self.stall = timeout, stall
        self.beat = timeout / BEATS
        self._stopping = threading.Event()
        self._ending = threading.Lock()  # taken by the first of several ends of this process
        self._heard: dict[int, tuple[str, float]] = {}  # the last beat, and the silence since
        self._looked = time.monotonic()
        self._steps = 0
        self._stood: tuple[list[int], float] = ([], 0.0)  # the steps of all, and how long already
        self._store: Store | None = None
        self._handler: Any = None

    @contextmanager
    def over(self, store: Store, pulse_address: str | None = None) -> Iterator[None]:
        """Watch while the block runs; if it raises, report that to the others and end.

        pulse_address: the address at which a child answers for this process, None without one.
        """
        self._store = store
        if pulse_address is not None:
            store.set(f"{PULSE}/{self.index}", pulse_address)
        thread = threading.Thread(target=self._run, name="jaxgen-watch", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self._explain(error)
            self._end_once()
            raise
        finally:
            self._stopping.set()
            thread.join(2 * self.beat)

    def progress(self) -> None:
        """Count another step of this process."""
        self._steps += 1

    def guard_aborts(self) -> None:
        """Make JAX's abort over a lost process print one line and use our exit code."""
        # Python's own handlers run between two bytecodes, which an abort never reaches.
        lost = f"{self.coordinator} is lost"
        if self.index == 0:
            lost = "another process is lost, as JAX says above"
        line = self._line(f"{lost}, and JAX has ended this process").encode()

        def last_word(number: int) -> None:
            self._end_once()
            os.write(2, line)
            os._exit(PeerError.exit_code)

        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(last_word)
        library = ctypes.CDLL(None)
        library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        library.signal.restype = ctypes.c_void_p
        library.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def wait_for_verdict(self) -> None:
        """Wait for the verdict after an error that a lost process would explain."""
        time.sleep(self.timeout + 3 * self.beat)

    def _run(self) -> None:
        count = 0
        while not self._stopping.wait(self.beat if count else 0):
            count += 1
            try:
                verdict = self._poll(count)
            except PeerError:  # the store is lost with process 0
                verdict = _verdict(PeerError.exit_code, f"{self.coordinator} is lost")
            if verdict and not self._stopping.is_set():
                self._end(verdict)

    def _poll(self, count: int) -> str | None:
        """Return the verdict on this group, if there is one: exit code and message."""
        assert self._store is not None
        self._store.set(f"{ROOM}/beat/{self.index}", f"{count} {self._steps}")
        if self.index:
            return self._store.find(f"{ROOM}/verdict/").get(VERDICT)
        reason = next(iter(self._store.find(f"{ROOM}/left/").values()), None) or self._find_lost()
        if reason:
            self._store.set(VERDICT, reason)
            self._linger()
        return reason

    def _find_lost(self) -> str | None:
        """Return the verdict on a process that is silent, or stuck."""
        assert self._store is not None
        beats, now = self._store.find(f"{ROOM}/beat/"), time.monotonic()
        # Where this process itself was held up, or its machine slept, the others may have been too.
        passed, self._looked = min(now - self._looked, 2 * self.beat), now
        signs = [beats.get(f"{ROOM}/beat/{index}", "0 0") for index in range(len(self.names))]
        why = self._silent(signs, passed) or self._stuck(signs, passed)
        return why and _verdict(PeerError.exit_code, why)

    def _silent(self, signs: list[str], passed: float) -> str | None:
        for index, sign in enumerate(signs):
            before, silence = self._heard.get(index, ("", 0.0))
            silence = silence + passed if sign == before else 0.0
            self._heard[index] = (sign, silence)
            if silence > self.timeout and not self._answers(index):
                return f"{self.names[index]} is lost: nothing was heard of it for {silence:.0f} s"
        return None

    def _answers(self, index: int) -> bool:
        """Return whether the child of a silent process says that it runs."""
        assert self._store is not None
        address = self._store.find(f"{PULSE}/").get(f"{PULSE}/{index}")
        return address is not None and pulse.is_alive(address, max(self.beat, ASKING))

    def _stuck(self, signs: list[str], passed: float) -> str | None:
        steps = [int(sign.partition(" ")[2]) for sign in signs]
        same = steps == self._stood[0] and max(steps) > 0  # 0: they prepare, however long
        stood = self._stood[1] + passed if same else 0.0
        self._stood = (steps, stood)
        if stood <= self.stall:
            return None
        behind = [self.names[index] for index, step in enumerate(steps) if step < max(steps)]
        who = ", ".join(behind[:8]) or "all processes alike"
        return f"no process has finished a step for {stood:.0f} s; behind the others: {who}"

    def _linger(self) -> None:
        """Stay until the others have read the verdict: JAX's service ends with this process."""
        time.sleep(min(3 * self.beat, PARTING))

    def _explain(self, error: BaseException) -> None:
        """Report to the others why this process ends, unless all end in agreement."""
        store = self._store
        if store is None or isinstance(error, AgreedExit):
            return
        if not isinstance(error, UserError | KeyboardInterrupt | SystemExit) and _of_peers(error):
            self.wait_for_verdict()
        code, why = PeerError.exit_code, f"has ended with {type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            # Told to stop on its own, before there was a step to stop at together.
            code, why = error.code if isinstance(error.code, int) else code, "was told to stop"
        elif isinstance(error, UserError):
            why = f"has ended with exit code {error.exit_code}: {error}"
        verdict = _verdict(code, f"{self.names[self.index]} {' '.join(why.split())[:300]}")
        with suppress(PeerError):
            store.set(f"{ROOM}/left/{self.index}" if self.index else VERDICT, verdict)
            if not self.index:
                self._linger()

    def _end_once(self) -> None:
        """Let only the first of several ends of this process print its line."""
        if not self._ending.acquire(blocking=False):
            time.sleep(PARTING)

    def _end(self, verdict: str) -> None:
        self._end_once()
        code, _, words = verdict.partition(" ")
        with suppress(OSError, ValueError):
            print(self._line(words), end="", file=sys.stderr, flush=True)
        os._exit(int(code))

    def _line(self, verdict: str) -> str:
        return f"jaxgen: error: {verdict}; {AGAIN}\n"


def _verdict(code: int, words: str) -> str:
    return f"{code} {words}"


def _of_peers(error: BaseException) -> bool:
    """Return whether an error is one that a collective raises when its other end is gone."""
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection", "peer", "unavailable", "socket"))
