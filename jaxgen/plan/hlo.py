"""What a compiled program sends between devices, read from its text.

The compiler's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from math import prod

from jaxgen.profile.program import HEAD, arrays

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
LOOP = re.compile(r"\bwhile\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
CALL = re.compile(r"\b(?:calls|to_apply|branch_computations|called_computations)=\{?(%?[\w., %-]+)")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
ON_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}")


def traffic(text: str) -> dict[str, float]:
    """Return the bytes that one device sends in a run of the program, by kind of collective.

    Ring algorithms: a gather or a scatter of S bytes over n devices sends S (n - 1) / n, an
    all-reduce twice that.
    """
    computations, entry = _computations(text)
    runs = _runs(computations, entry)
    sent: dict[str, float] = defaultdict(float)
    for name, lines in computations.items():
        for line in lines:
            found = COLLECTIVE.search(line)
            if found:
                # XLA for TPU writes a reduce-scatter as a fusion of an all-reduce and a slice.
                scatter = found[2] == "all-reduce" and "all-reduce-scatter" in name
                kind = "reduce-scatter" if scatter else found[2]
                sent[kind] += runs[name] * _sent(kind, found, line, scatter)
    return dict(sent)


def _sent(kind: str, found: re.Match, line: str, whole: bool) -> float:
    size = sum(array.bytes for array in arrays(found[1]))
    devices = _devices(line)
    share = (devices - 1) / devices
    if found[3] and kind in ("all-gather", "reduce-scatter"):
        size *= devices / (devices + 1)  # the type of a start holds what is given as well
    elif kind == "reduce-scatter" and not whole:
        size *= devices  # its result is one part of it
    return {"all-reduce": 2 * share * size, "collective-permute": size}.get(kind, share * size)


def _devices(line: str) -> int:
    if found := LISTED.search(line):
        return max(len(found[1].split(",")), 1)
    if found := COUNTED.search(line):
        return int(found[1])
    if found := ON_MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'", line[found.start(2) : found.end(2)])
        return prod(int(sizes[axis]) for axis in axes) or 1
    return 1


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return found, entry


def _calls(computations: dict[str, list[str]], name: str) -> Iterator[tuple[str, int]]:
    """Yield (computation, times) for what a computation runs."""
    for line in computations[name]:
        if loop := LOOP.search(line):
            told = TURNS.findall(line) or LIMIT.findall("\n".join(computations.get(loop[1], [])))
            yield loop[2], max(map(int, told), default=1)
        elif call := CALL.search(line):
            for other in re.findall(r"[\w.-]+", call[1]):
                if other in computations:
                    yield other, 1


def _runs(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Return how often each computation runs."""
    runs: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for other, count in _calls(computations, name):
            visit(other, times * count)

    visit(entry, 1)
    return runs
