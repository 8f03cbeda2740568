"""How long the operations of a compiled program take at best, on a chip that is not here."""

from __future__ import annotations

from typing import NamedTuple

from jaxgen.profile.chips import Chip
from jaxgen.profile.program import FREE, Operation, Program


class Work(NamedTuple):
    """An operation in all of one run: how often, and the seconds that it takes at least."""

    name: str
    times: int
    seconds: float
    bound: str  # "products" or "bandwidth"
    operation: Operation


def work(program: Program, chip: Chip) -> list[Work]:
    """Return the operations of a run, those that take longest first.

    Each multiplies at the chip's rate or moves its bytes at the memory's, whichever takes longer
    (Williams et al. 2009, "Roofline"); what is sent between chips is left out.
    """
    parts = []
    for computation, times in program.runs().items():
        lines = program.computations[computation]
        names = [n for n, one in lines.items() if not _passes(one.opcode)]
        for name, one in program.operations(names).items():
            least = {"products": one.flops / chip.flops, "bandwidth": one.bytes / chip.bandwidth}
            bound = max(least, key=lambda what: least[what])
            parts.append(Work(name, times, times * least[bound], bound, one))
    return sorted(parts, key=lambda one: -one.seconds)


def _passes(opcode: str) -> bool:
    """Return whether an opcode stands for no work of its own on the device."""
    return opcode in FREE or opcode.endswith(("-done", "-update"))
