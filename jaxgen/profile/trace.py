"""Traces of jax.profiler: recorded, and read as executions of operations."""

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
    """One execution of an operation, in seconds; kernel: its name on the device."""

    module: str
    name: str
    kernel: str
    begin: float
    end: float


@contextmanager
def record(folder: Path) -> Iterator[None]:
    """Trace devices during the block into a new folder below `folder`, for TensorBoard.

    Python calls are not recorded: that would slow the program.
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

    On CPU of all devices, because they share the cores.
    """
    planes = {plane.name: plane for plane in data.planes}
    for name in (*sorted(n for n in planes if n.startswith(DEVICE)), HOST):
        operations = _operations(planes[name]) if name in planes else []
        if operations:
            return operations
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
    return [_execution(event, stats, ended, modules) for event, stats in begun]


def _execution(event: Any, stats: dict[str, Any], ended: dict[int, float], modules: list) -> Ran:
    begin, end = event.start_ns, event.start_ns + event.duration_ns
    # On a CPU, work handed to other threads outlasts its event; a second event marks its end.
    end = max(end, ended.get(stats.get("_p", -1), end))
    before = bisect_right(modules, begin, key=lambda module: module[0])
    module = stats.get("hlo_module") or (modules[before - 1][1] if before else "")
    # A TPU's events are named by their whole instruction.
    match = NAME.match(event.name)
    name = stats.get("hlo_op") or (match[1] if match else event.name)
    return Ran(module, name, event.name, begin / 1e9, end / 1e9)


def seconds(
    ran: Iterable[Ran], control: Set[tuple[str, str]] = frozenset()
) -> dict[tuple[str, str], float]:
    """Return the seconds of each (module, operation); their sum is the busy time.

    Where n operations overlap, each counts 1 / n. Control flow, by name or in `control`, counts
    only while no other operation runs.
    """
    changes = []
    for number, one in enumerate(ran):
        if one.end <= one.begin:
            continue
        key = (one.module, one.name)
        runs = key in control or one.name.partition(".")[0] in CONTROL
        changes += [(one.begin, 1, number, runs, key), (one.end, 0, number, runs, key)]
    durations: dict[tuple[str, str], float] = defaultdict(float)
    running: tuple[dict, dict] = ({}, {})  # work, control
    last = 0.0
    for now, begins, number, runs, key in sorted(changes):
        active = running[0] or running[1]
        for one in active.values():
            durations[one] += (now - last) / len(active)
        last = now
        if begins:
            running[runs][number] = key
        else:
            del running[runs][number]
    return dict(durations)


def executions(ran: Iterable[Ran]) -> dict[tuple[str, str], int]:
    """Return how often each (module, operation) ran; one of several kernels ran as often as each.

    A GPU launches one kernel or more for an operation.
    """
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for one in ran:
        counts[one.module, one.name][one.kernel] += 1
    return {key: max(kernels.values()) for key, kernels in counts.items()}
