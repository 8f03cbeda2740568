"""How many programs a thread compiles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import jax

EVENT = "/jax/core/compile/backend_compile_duration"
_here = threading.local()


@contextmanager
def counted(counts: dict[str, int], name: str) -> Iterator[None]:
    """Add the programs that this thread compiles inside to a count."""
    _listen()
    before = getattr(_here, "number", 0)
    try:
        yield
    finally:
        counts[name] += getattr(_here, "number", 0) - before


@lru_cache(maxsize=1)
def _listen() -> None:
    """Listen to JAX, once for the process."""

    def heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == EVENT:
            _here.number = getattr(_here, "number", 0) + 1

    jax.monitoring.register_event_duration_secs_listener(heard)
