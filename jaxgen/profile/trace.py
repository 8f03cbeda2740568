"""A trace of jax.profiler: made, and read as operations that ran from when to when."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgen.profile.program import CONTROL

DEVICE, HOST = "/device:", "/host:CPU"  # planes; a CPU's operations lie on the host's threads
OPERATIONS, MODULES = "XLA Ops", "XLA Modules"  # lines of a TPU's plane
ENDED = "end: "
NAME = re.compile(r"%?([\w.-]+)")


class Ran(NamedTuple):
    """One execution of an operation, in seconds; kernel: which of its parts it was."""

    module: str
    name: str
    kernel: str
    begin: float
    end: float


@contextmanager
def record(folder: Path) -> Iterator[None]:
    """Trace what devices do in the block into a new folder below `folder`, as TensorBoard reads it.

    Python's own calls are left out: recording them would slow what is measured.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield


def files(folder: Path) -> set[Path]:
    """Return the traces that lie below a folder."""
    return set(folder.rglob("*.xplane.pb"))


def read_operations(data: Any) -> list[Ran]:
    """Return the operations in a `jax.profiler.ProfileData` of one device.

    Or of all CPU devices, for these share the cores.
    """
    planes = {plane.name: plane for plane in data.planes}
    for name in (*sorted(n for n in planes if n.startswith(DEVICE)), HOST):
        found = _operations(planes[name]) if name in planes else []
        if found:
            return found
    return []


def _operations(plane: Any) -> list[Ran]:
    lines = list(plane.lines)
    own = [line for line in lines if line.name == OPERATIONS]
    modules = sorted(
        (event.start_ns, event.name.partition("(")[0])
        for line in lines
        if line.name == MODULES
        for event in line.events
    )
    begun: list[tuple[Any, dict[str, Any]]] = []
    ended: dict[int, float] = {}
    for line in own or lines:
        for event in line.events:
            stats = dict(event.stats)
            if own or "hlo_op" in stats:
                begun.append((event, stats))
            elif event.name.startswith(ENDED) and "_c" in stats:
                ended[stats["_c"]] = event.start_ns
    return [_ran(event, stats, ended, modules) for event, stats in begun]


def _ran(event: Any, stats: dict[str, Any], ended: dict[int, float], modules: list) -> Ran:
    begin, end = event.start_ns, event.start_ns + event.duration_ns
    # What a CPU's thread has handed to others goes on after its own event: a second one says when
    # it was done.
    end = max(end, ended.get(stats.get("_p", -1), end))
    before = bisect_right(modules, begin, key=lambda module: module[0])
    module = stats.get("hlo_module") or (modules[before - 1][1] if before else "")
    # A TPU's events are called after their whole instruction.
    found = NAME.match(event.name)
    name = stats.get("hlo_op") or (found[1] if found else event.name)
    return Ran(module, name, event.name, begin / 1e9, end / 1e9)


def seconds(
    ran: Iterable[Ran], control: Set[tuple[str, str]] = frozenset()
) -> dict[tuple[str, str], float]:
    """Return the seconds of each (module, operation); together, those in which anything ran.

    An instant at which n operations ran counts 1 / n for each of them, and for one that runs
    others, as a loop does, only if none of them ran: those of `control`, and by their names.
    """
    changes = []
    for number, one in enumerate(ran):
        if one.end <= one.begin:
            continue
        key = (one.module, one.name)
        runs = key in control or one.name.partition(".")[0] in CONTROL
        changes += [(one.begin, 1, number, runs, key), (one.end, 0, number, runs, key)]
    found: dict[tuple[str, str], float] = defaultdict(float)
    running: tuple[dict, dict] = ({}, {})  # work, control
    last = 0.0
    for now, begins, number, runs, key in sorted(changes):
        active = running[0] or running[1]
        for one in active.values():
            found[one] += (now - last) / len(active)
        last = now
        if begins:
            running[runs][number] = key
        else:
            del running[runs][number]
    return dict(found)


def executions(ran: Iterable[Ran]) -> dict[tuple[str, str], int]:
    """Return how often each (module, operation) ran; one of several kernels ran as often as each.

    A GPU launches one kernel or more for an operation.
    """
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in ran:
        counts[one.module, one.name][one.kernel] += 1
    return {key: max(kernels.values()) for key, kernels in counts.items()}
