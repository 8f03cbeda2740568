"""A plan as rows of words, for a terminal."""

from __future__ import annotations

from collections import defaultdict

from jaxgen.data.objectives.settings import PREFERENCES
from jaxgen.files import human
from jaxgen.mesh.settings import AXES
from jaxgen.plan import roofline
from jaxgen.plan.compiled import Program
from jaxgen.plan.measured import Measured
from jaxgen.plan.roofline import Work
from jaxgen.run import forecast
from jaxgen.run.forecast import MemoryPlan

ANALYTIC = "analytic: from shapes and rates, nothing was compiled"
WITH_COMPILER = "analytic: from shapes and data sheets; those of the compiler follow"
COSTLIEST = 5  # operations that are named
Rows = list[tuple[str, str]]


def rows(plan: MemoryPlan, *, compiling: bool = False) -> Rows:
    """Return (name, value) rows: memory, work, traffic, time, and what would fit if it does not.

    compiling: whether the compiler's figures follow.
    """
    model, train = plan.settings.model, plan.settings.train
    texts = 2 if plan.settings.objective.name in PREFERENCES else 1  # of a row
    tokens = texts * train.batch * model.context
    table = [
        ("model", _parameters(plan.parameters)),
        ("machine", f"{plan.chips} x {plan.chip.name}, {human(plan.chip.memory)} each"),
        ("step", f"{tokens:,} tokens: {texts * train.batch} rows of {model.context}"),
        ("layout", layout(plan)),
        ("figures", WITH_COMPILER if compiling else ANALYTIC),
    ]
    table += [(f"{name} per chip", human(size)) for name, size in plan.memory.items()]
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    usable = human(forecast.USABLE * plan.chip.memory)
    table += [
        ("total per chip", f"{human(plan.total)} of {usable} usable: {verdict}"),
        ("key/value cache", f"{human(plan.cache)} per row of {model.context} tokens, all chips"),
        ("checkpoint", human(plan.checkpoint)),
        ("FLOPs per chip and step", f"{plan.flops:.3e}"),
    ]
    table += [(name, f"{human(size)} sent per chip") for name, size in plan.traffic.items() if size]
    table += [(f"time for {name}", _time(seconds)) for name, seconds in plan.seconds.items()]
    table += [
        ("step time, at the roofline", f"{_time(plan.step)}, bound by {plan.bound}"),
        ("tokens per second", f"{tokens / plan.step:,.0f}, {_share(plan):.0f}% of peak"),
    ]
    return table if plan.fits else table + _remedy(plan)


def compiled_rows(plan: MemoryPlan, program: Program) -> Rows:
    """Return what the compiler says of a program, beside what the plan said where it did."""
    usable = forecast.USABLE * plan.chip.memory
    verdict = "fits" if program.total <= usable else "DOES NOT FIT"
    state, name = human(program.state), program.name
    work, temporary = "", human(program.temporary)
    if name == "training":
        state += f"; analytic {_beside(plan.state, program.state)}"
        work = f"; analytic {_beside(plan.total - plan.state, program.temporary)}"
    table = [
        (f"{name} step, compiled in", _time(program.seconds)),
        ("  " + ("parameters + optimizer" if name == "training" else "cache"), state),
        ("  other arguments", human(program.given)),
        ("  temporary", temporary + work),
        ("  results, code", human(program.results + program.code)),
        ("  total per chip", f"{human(program.total)} of {human(usable)} usable: {verdict}"),
    ]
    if program.flops is not None:
        table.append(("  FLOPs, each loop once", f"{program.flops:.3e}"))
    table += [(f"  {kind}", f"{human(size)} sent") for kind, size in program.traffic.items()]
    return table + _work(roofline.work(program.text, plan.chip))


def _work(work: list[Work]) -> Rows:
    """Return the least time of a program's operations, and which of them take most of it."""
    seconds = {"products": 0.0, "bandwidth": 0.0}
    for one in work:
        seconds[one.bound] += one.seconds
    table = [
        ("  operations at the roofline", f"{_time(sum(seconds.values()))}, all one after another"),
        ("    bound by products", _time(seconds["products"])),
        ("    bound by memory", _time(seconds["bandwidth"])),
        ("    number of them", f"{sum(one.times for one in work):,}"),
    ]
    # Unrolled layers have an operation each, and what they do is one.
    alike: dict[str, list[Work]] = defaultdict(list)
    for one in work:
        what = f"{one.operation.path} {one.operation.note}".strip() or one.name.rstrip(
            ".0123456789"
        )
        alike[f"{what}, {one.operation.line}".rstrip(", ")].append(one)
    costs = {what: sum(one.seconds for one in same) for what, same in alike.items()}
    for what in sorted(costs, key=lambda what: -costs[what])[:COSTLIEST]:
        times = sum(one.times for one in alike[what])
        table.append((f"    {_time(costs[what])}", f"{times} x {what}"))
    return table


def measured_rows(plan: MemoryPlan, measured: Measured) -> Rows:
    """Return what a run of a few steps showed, beside what the plan said."""
    return [
        ("steps run here", f"{measured.steps} after the first, in a process of its own"),
        (
            "peak memory, measured",
            f"{human(measured.memory)}; planned {_beside(plan.total, measured.memory)}",
        ),
        (
            "step time, measured",
            f"{_time(measured.seconds)}; planned {_beside_time(plan.step, measured.seconds)}",
        ),
        ("compiling", _time(measured.compiling)),
    ]


def layout(plan: MemoryPlan) -> str:
    """Return mesh, microbatches and remat as the overrides that ask for them."""
    sizes = plan.settings.mesh.sizes(plan.chips)
    mesh = ",".join(f"{axis}:{size}" for axis, size in zip(AXES, sizes, strict=True))
    return (
        f"mesh={mesh} train.accumulate={plan.settings.train.accumulate} "
        f"model.remat={plan.settings.model.remat}"
    )


def _beside(planned: float, actual: float) -> str:
    return f"{human(planned)} ({100 * (planned / actual - 1):+.1f}%)"


def _beside_time(planned: float, actual: float) -> str:
    return f"{_time(planned)} ({100 * (planned / actual - 1):+.1f}%)"


def _remedy(plan: MemoryPlan) -> Rows:
    other = forecast.nearest(plan)
    if other is None:
        return [("nearest that fits", "none on these chips: take more of them, or a smaller model")]
    return [
        ("nearest that fits", f"{forecast.changes(plan, other)} ({human(other.total)} per chip)")
    ]


def _parameters(count: int) -> str:
    return f"{count / 1e9:.3f} B parameters" if count >= 1e8 else f"{count / 1e6:.2f} M parameters"


def _share(plan: MemoryPlan) -> float:
    return 100 * plan.seconds["compute"] / plan.step


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
