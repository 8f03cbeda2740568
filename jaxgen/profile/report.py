"""The costliest operations of a trace, and their share of the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple

import jax

from jaxgen import terminal
from jaxgen.errors import BusyError
from jaxgen.profile import limits, program, trace
from jaxgen.profile.program import Operation, Program
from jaxgen.profile.trace import Ran

MOST = 10
# Types in HLO whose matmuls are measured.
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "f64": "float64"}


class Row(NamedTuple):
    """All executions of an operation in a trace."""

    name: str
    times: int
    seconds: float
    share: float  # of the time from the first operation to the last
    bound: str  # "products" or "bandwidth", the slower of both at best; "" if unknown
    reached: float  # that time over its own; above 1 where data stay in caches
    operation: Operation | None  # None without its program


class Report(NamedTuple):
    """The costliest operations first; seconds from the first operation to the last."""

    rows: tuple[Row, ...]
    others: int
    rest: float  # share of all other operations
    idle: float  # share of the time in which none ran
    seconds: float
    rates: dict[str, float]  # measured limits of the machine, see `machine_rate`


@cache
def machine_rate(what: str) -> float:
    """Return bytes/s of "bandwidth", or FLOP/s of products of a type by its name in programs."""
    return limits.bandwidth() if what == "bandwidth" else limits.products(DTYPES[what])


def summarize(
    ran: list[Ran], programs: Mapping[str, Program], rate: Callable[[str], float] = machine_rate
) -> Report:
    """Return the Report of what ran; programs: by module; rate: like `machine_rate`.

    Raises BusyError if nothing ran, as where a GPU's counters are closed to its users.
    """
    if not ran:
        raise BusyError("the trace holds no operation: the profiler sees nothing of this device")
    control = {(module, name) for module, one in programs.items() for name in one.control}
    seconds, times = trace.seconds(ran, control), trace.executions(ran)
    total = max(one.end for one in ran) - min(one.begin for one in ran)
    first = sorted(seconds, key=lambda key: -seconds[key])[:MOST]
    costs = {
        module: one.operations([name for of, name in first if of == module])
        for module, one in programs.items()
    }
    operations = {key: costs[key[0]][key[1]] for key in first if key[1] in costs.get(key[0], ())}
    types = {one.dtype for one in operations.values() if one.dtype in DTYPES}
    rates = {what: rate(what) for what in sorted({"bandwidth"} | types)} if operations else {}
    rows = []
    for key in first:
        one = operations.get(key)
        bound, reached = _limit_of(one, seconds[key] / times[key], rates)
        share = seconds[key] / total
        rows.append(Row(key[1], times[key], seconds[key], share, bound, reached, one))
    rest = sum(seconds.values()) - sum(row.seconds for row in rows)
    idle = max(1 - sum(seconds.values()) / total, 0.0)
    return Report(tuple(rows), len(seconds) - len(rows), rest / total, idle, total, rates)


def _limit_of(
    one: Operation | None, seconds: float, rates: Mapping[str, float]
) -> tuple[str, float]:
    """Return (the limit of an operation, the share of it that is reached)."""
    if one is None or not (one.bytes or one.flops):
        return "", 0.0
    least = {"bandwidth": one.bytes / rates["bandwidth"]}
    if one.dtype in DTYPES:
        least["products"] = one.flops / rates[one.dtype]
    bound = max(least, key=lambda name: least[name])
    return bound, least[bound] / seconds


def live_programs(ran: Iterable[Ran]) -> dict[str, Program]:
    """Return the Program of each module that ran, from JAX's live executables."""
    names: dict[str, set[str]] = {}
    for one in ran:
        names.setdefault(one.module, set()).add(one.name)
    programs: dict[str, Program] = {}
    for executable in jax.local_devices()[0].client.live_executables():
        for module in executable.hlo_modules():
            if module.name not in names:
                continue
            other, executed = program.parse(module.to_string()), names[module.name]
            best = programs.get(module.name)
            # Of programs of one name, the one with most of the executed operations.
            if best is None or len(executed & other.names) > len(executed & best.names):
                programs[module.name] = other
    return programs


def lines(report: Report, runs: int) -> list[str]:
    """Return the table as plain lines; times are those of one of `runs` runs."""
    head = ("time", "times", "of the limit", "operation", "what it does", "line")
    cells = [head, *(_cells(row, runs) for row in report.rows)]
    shown = terminal.aligned(cells, (True, True, True, False, False, False))
    shown.append(f"{report.others} other operations {report.rest:.1%}, none {report.idle:.1%}")
    rates = [
        f"{rate / 1e9:.4g} " + ("GB/s" if what == "bandwidth" else f"GFLOP/s of {DTYPES[what]}")
        for what, rate in report.rates.items()
    ]
    return (
        [*shown, f"limits measured here: {', '.join(rates)}; caches are faster"] if rates else shown
    )


def _cells(row: Row, runs: int) -> tuple[str, ...]:
    one = row.operation
    limit = f"{row.reached:.0%} of {row.bound}" if row.bound else "-"
    what = "" if one is None else f"{one.path} ({one.note})" if one.note else one.path
    times = f"{row.times / runs:.6g}"
    return (f"{row.share:.1%}", times, limit, row.name, what.strip(), one.line if one else "")
