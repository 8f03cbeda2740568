"""What the machine under a process has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

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
