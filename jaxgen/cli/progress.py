"""A sign of life on standard error while something takes minutes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FIRST, EVERY = 5.0, 30.0  # seconds: a terminal's line is renewed each second from the first on


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say `text` with the seconds that have passed, until the block ends."""
    done, terminal = threading.Event(), sys.stderr.isatty()
    start = time.monotonic()

    def tell() -> None:
        pause = FIRST
        while not done.wait(pause):
            line = f"{text}: {time.monotonic() - start:.0f} s"
            print(f"\r{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr)
            sys.stderr.flush()
            pause = 1.0 if terminal else EVERY
        if terminal and time.monotonic() - start > FIRST:
            print(f"\r{' ' * (len(text) + 12)}\r", end="", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
