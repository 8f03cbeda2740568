"""Memory of the C library, as XLA:CPU needs it; the plain form is glibc's default."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from pathlib import Path

from jaxgen.ops.cpu import TWINS, enabled

# Parameters of mallopt (malloc.h), and their values.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER, NONE, ONE = -1, 0, 1
STATUS = Path("/proc/self/status")
COMPILED, LONG = "/jax/core/compile/backend_compile_duration", 1.0  # JAX's event; seconds


def tune() -> tuple[str, ...]:
    """Make glibc keep freed memory for reuse; return a description of the change.

    XLA on a CPU allocates its temporaries anew for each call. By default glibc maps allocations of
    that size from the system and unmaps them, so that every page of every training step is faulted
    in and zeroed again: a fifth of a step's time. Memory then stays at its peak until the process
    ends or `give_back`, which runs after long compilations. Call it before the first use of a
    device: threads that exist already keep their arenas. Returns () with any other C library or
    allocator.
    """
    # Looking the platform up would start JAX.
    return _tune() if enabled("allocator", "cpu") else ()


@cache
def _tune() -> tuple[str, ...]:
    libc = _glibc()
    if libc is None:
        return ()
    # One arena: the first can grow to any size, others map large blocks.
    options = ((M_ARENA_MAX, ONE), (M_MMAP_MAX, NONE), (M_TRIM_THRESHOLD, NEVER))
    if not all(libc.mallopt(option, value) for option, value in options):
        return ()
    from jax import monitoring

    def compiled(event: str, duration_secs: float, **_: str | int) -> None:
        # It leaves free memory in pieces too small for a program's temporaries.
        if event == COMPILED and duration_secs > LONG:
            give_back()

    monitoring.register_event_duration_secs_listener(compiled)
    return (TWINS["allocator"],)


def give_back() -> None:
    """Return free memory to the system."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def resident(name: str = "VmRSS") -> int:
    """Return the bytes of memory that this process holds; VmHWM: held at most. Of Linux alone."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {name}")


PAUSE = 1e-3  # seconds at most


def pause(step: float) -> None:
    """Sleep until XLA has freed the temporaries of the last training step, for the next to reuse.

    It frees them some 0.1 ms after the results are ready. A step dispatched before that allocates
    its own again, and the process never returns that memory.

    Args:
        step: seconds of the last step.
    """
    if enabled("pause"):
        time.sleep(min(PAUSE, step / 200))


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        _ = libc.mallopt, libc.malloc_trim, libc.gnu_get_libc_version
    except (OSError, AttributeError, TypeError):
        return None
    return libc
