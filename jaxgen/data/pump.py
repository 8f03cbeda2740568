"""A thread that takes from a stream, so that its reader can stop waiting."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from jaxgen.errors import DataError

BEAT = 0.2  # seconds between looks at whether to stop
LEAVE = 5.0  # seconds for the thread, and for the stream, to end when asked


class Pump:
    """The items of an iterator that has `close`; a wait of more than `patience` s is a DataError.

    grain notices a worker that was killed, except one killed while it was sending: then the
    reader of the pipe would wait for the rest for ever.
    """

    def __init__(self, stream: Any, patience: float) -> None:
        self._stream, self._patience = stream, patience
        self._items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(2)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxgen-batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            item, error = self._items.get(timeout=self._patience)
        except queue.Empty:
            raise DataError(
                f"no batch came for {self._patience:.0f} s, so a process that makes them is lost; "
                f"start again"
            ) from None
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        """Stop the thread and the stream; both are left behind if they don't end in time."""
        self._stopping.set()
        self._thread.join(LEAVE)
        # grain waits for ever for a lock that a killed worker took with it (seen in 0.2.18).
        closing = threading.Thread(target=self._stream.close, name="jaxgen-close", daemon=True)
        closing.start()
        closing.join(LEAVE)

    def _run(self) -> None:
        try:
            for item in self._stream:
                if not self._put(item, None):
                    return
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: Any, error: BaseException | None) -> bool:
        while not self._stopping.is_set():
            try:
                self._items.put((item, error), timeout=BEAT)
                return True
            except queue.Full:
                continue
        return False
