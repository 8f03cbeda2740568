"""Being told to stop: the first signal asks, the second insists."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from jaxgen.errors import BUG, INTERRUPTED, PREEMPTED, UserError

GRACE = 2.0  # seconds the main thread has to answer, before it is taken to be out of reach
NOTHING_LOST = "stopped with nothing left to save; the same command goes on"
TWICE = "interrupted twice: ended at once; the same command goes on from what was saved"
LAST_WORD = 1.0  # seconds that saying so may take where a disk or a terminal has stalled


class StopRequest:
    """While entered, answers SIGTERM and SIGINT; calling it says whether one has come.

    At first there is nothing to save: the main thread is left by SystemExit(75) wherever it is.
    Inside `polling` the caller looks for itself and ends when it suits; inside `rescue` somebody
    else saves if the main thread, deep in a compiler or waiting for a device, can't. A second
    signal ends the process at once: 130 for SIGINT, 143 for SIGTERM, as shells say it.

    Python runs signal handlers between bytecodes of the main thread only, so a thread of ours
    hears of signals through the descriptor that the C handler writes to.

    grace: seconds that the main thread has to answer. same: seconds in which a second signal is
    the first once more, as where a scheduler and a parent process both send it.
    """

    def __init__(self, grace: float = GRACE, same: float = 0.0) -> None:
        self.signal: int | None = None
        self.grace, self.same = grace, same
        self._before: dict[int, object] = {}
        self._pipe: tuple[int, int] | None = None
        self._polled = self._said = False
        self._rescue: Callable[[], None] | None = None
        self.say_lost: Callable[[], None] = lambda: say(TWICE)  # what a second signal loses
        # Who holds it decides how the process ends: whoever leaves `rescue`, or the rescuer.
        self._lock = threading.Lock()

    def __call__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only; elsewhere nobody could send them to us.
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            os.register_at_fork(after_in_child=self._forget)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
            threading.Thread(
                target=self._listen, args=(self._pipe[0],), name="jaxgen-signals", daemon=True
            ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._polled = True  # what is left to do is little, and ours
        self._forget()

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Leave it to the block to look whether it should stop, and to save what there is."""
        self._leave_if_told()
        self._polled = True
        try:
            yield
        finally:
            # Once told, the block has saved; what is left to do is little.
            self._polled = self.signal is not None

    @contextmanager
    def rescue(self, save: Callable[[], None]) -> Iterator[None]:
        """In a block that can't look: if it isn't left soon after a signal, save and end with 75.

        save: called in another thread while the main thread is held in the block. What it raises
        decides the exit code, as it would elsewhere.
        """
        self._rescue = save
        try:
            yield
        finally:
            with self._lock:
                self._rescue = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if not self._polled:
            self._leave_if_told()

    def _leave_if_told(self) -> None:
        if self.signal is not None:
            self.say_nothing_lost()
            raise SystemExit(PREEMPTED)

    def say_nothing_lost(self) -> None:
        """Say once that the run stops where it began."""
        if not self._said:
            self._said = True
            say(NOTHING_LOST)

    def _listen(self, pipe: int) -> None:
        """Answer for the main thread; ends when the pipe is closed."""
        heard: list[int] = []
        first = 0.0
        while (numbers := _read(pipe, self.grace if heard else None)) != b"":
            if numbers is None:  # the main thread has had its time
                self._answer()
                continue
            heard += [n for n in numbers if n in (signal.SIGTERM, signal.SIGINT)]
            first = first or (time.monotonic() if heard else 0.0)
            if len(heard) > 1 and time.monotonic() - first < self.same:
                del heard[1:]
            if len(heard) > 1:
                speaker = threading.Thread(target=self.say_lost, daemon=True)
                speaker.start()
                speaker.join(LAST_WORD)
                os._exit(INTERRUPTED if heard[-1] == signal.SIGINT else 128 + heard[-1])
            self.signal = self.signal or (heard[0] if heard else None)

    def _answer(self) -> None:
        with self._lock:
            if self._rescue is not None:
                _end(self._rescue)
            if not self._polled:
                _end(self.say_nothing_lost)

    def _forget(self) -> None:
        """Give signals back; also in a forked child, whose signals are its own affair."""
        pipe, self._pipe = self._pipe, None
        if pipe is None:
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        os.close(pipe[1])


def say(line: str) -> None:
    """Write a line on standard error, past its stream, which may be in the midst of a write."""
    with suppress(OSError):
        begin = "\n" if os.isatty(2) else ""  # a line that is renewed in its place ends there
        os.write(2, f"{begin}{line}\n".encode())


def _read(pipe: int, wait: float | None) -> bytes | None:
    """Return the numbers of signals that have come, b"" at the end, None after waiting so long."""
    import select

    ready, _, _ = select.select([pipe], [], [], wait)
    if not ready:
        return None
    found = os.read(pipe, 64)
    if not found:
        os.close(pipe)
    return found


def _end(save: Callable[[], None]) -> None:
    """End the process once `save` is done; the main thread is not asked."""
    code = PREEMPTED
    try:
        save()
    except BaseException as error:
        code = error.exit_code if isinstance(error, UserError) else BUG
        with suppress(OSError, ValueError):
            print(f"jaxgen: error: {' '.join(str(error).split())}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
