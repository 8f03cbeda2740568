"""What the machine under a process can be told once, so that everything after it is faster."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

# The numbers of malloc.h, and what glibc is told.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER, NONE, ONE = -1, 0, 1
COMPILED, LONG = "/jax/core/compile/backend_compile_duration", 1.0  # JAX's event; seconds


# The limit of a container, by the newer and the older control groups.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> float:
    """Return the bytes of memory that there are: the machine's, or a container's limit."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in LIMITS:
        with suppress(OSError, ValueError):  # "max" is no limit
            whole = min(whole, int(Path(path).read_text()))
    return float(whole)


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def tune() -> tuple[str, ...]:
    """Tell the C library to keep freed memory for reuse; return what was told, in words.

    XLA on a CPU allocates its temporaries anew for each call. By default glibc maps allocations of
    that size from the system and gives them back after, so that every page of every training step
    is faulted in and zeroed again: a fifth of the time of a step. Memory then stays at its peak
    until the process ends, or `give_back`, which a long compilation calls. Call it before the
    first use of a device, for threads that exist already keep the arenas they have. Another C
    library, or allocator, is left alone: ().
    """
    libc = _glibc()
    if libc is None:
        return ()
    # One arena: only the first one can grow to any size, the others map what is large.
    wanted = ((M_ARENA_MAX, ONE), (M_MMAP_MAX, NONE), (M_TRIM_THRESHOLD, NEVER))
    if not all(libc.mallopt(option, value) for option, value in wanted):
        return ()
    from jax import monitoring

    def compiled(event: str, duration_secs: float, **_: str | int) -> None:
        # Free in pieces too small for a program's temporaries, which would come on top of it.
        if event == COMPILED and duration_secs > LONG:
            give_back()

    monitoring.register_event_duration_secs_listener(compiled)
    return ("freed memory is kept for reuse, not given back to the system",)


def give_back() -> None:
    """Give what is free to the system after all: for a moment after which other work begins."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        _ = libc.mallopt, libc.malloc_trim, libc.gnu_get_libc_version
    except (OSError, AttributeError, TypeError):
        return None
    return libc
