"""Being told to stop: the first signal asks, the second insists."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

from jaxgen.errors import INTERRUPTED


class StopRequest:
    """While entered, notes SIGTERM and SIGINT; calling it says whether one has come.

    A second signal ends the process at once: 130 for SIGINT, 143 for SIGTERM, as shells say it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __call__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only; elsewhere nobody could send them to us.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(INTERRUPTED if number == signal.SIGINT else 128 + number)
        self.signal = number
