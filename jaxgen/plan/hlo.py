"""What a compiled program sends between devices, read from its text.

The compiler's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from math import prod

from jaxgen.profile.program import CONTROL, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(-start)?")
LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
ON_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}")


def traffic(program: Program) -> dict[str, float]:
    """Return the bytes that one device sends in a run of the program, by kind of collective.

    Ring algorithms: a gather or a scatter of S bytes over n devices sends S (n - 1) / n, an
    all-reduce twice that.
    """
    sent: dict[str, float] = defaultdict(float)
    for name, times in program.runs((*CONTROL, "fusion", "async-start")).items():
        for one in program.computations[name].values():
            if match := COLLECTIVE.fullmatch(one.opcode):
                # XLA for TPU writes a reduce-scatter as a fusion of an all-reduce and a slice.
                scatter = match[1] == "all-reduce" and "all-reduce-scatter" in name
                kind = "reduce-scatter" if scatter else match[1]
                sent[kind] += times * _sent(kind, one, scatter)
    return dict(sent)


def _sent(kind: str, one: Instruction, whole: bool) -> float:
    size, devices = one.size, _devices(one.text)
    share = (devices - 1) / devices
    if one.opcode.endswith("-start") and kind in ("all-gather", "reduce-scatter"):
        size *= devices / (devices + 1)  # the type of a start holds what is given as well
    elif kind == "reduce-scatter" and not whole:
        size *= devices  # its result is one part of it
    return {"all-reduce": 2 * share * size, "collective-permute": size}.get(kind, share * size)


def _devices(text: str) -> int:
    if match := LISTED.search(text):
        return max(len(match[1].split(",")), 1)
    if match := COUNTED.search(text):
        return int(match[1])
    if match := ON_MESH.search(text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        axes = re.findall(r"'(\w+)'", text[match.start(2) : match.end(2)])
        return prod(int(sizes[axis]) for axis in axes) or 1
    return 1
