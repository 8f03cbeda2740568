"""A plan as rows of words, for a terminal."""

from __future__ import annotations

from jaxgen.files import human
from jaxgen.mesh.settings import AXES
from jaxgen.plan import analytic
from jaxgen.plan.analytic import Plan

Rows = list[tuple[str, str]]


def rows(plan: Plan) -> Rows:
    """Return (name, value) rows: memory, work, traffic, time, and what would fit if it does not."""
    model, train = plan.settings.model, plan.settings.train
    tokens = train.batch * model.context
    found = [
        ("model", f"{plan.parameters / 1e9:.3f} B parameters"),
        ("machine", f"{plan.chips} x {plan.chip.name}, {human(plan.chip.memory)} each"),
        ("step", f"{tokens:,} tokens: {train.batch} rows of {model.context}"),
        ("layout", layout(plan)),
        ("figures", "analytic: from shapes and data sheets, nothing was compiled"),
    ]
    found += [(f"{name} per chip", human(size)) for name, size in plan.memory.items()]
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    usable = human(analytic.USABLE * plan.chip.memory)
    found += [
        ("total per chip", f"{human(plan.total)} of {usable} usable: {verdict}"),
        ("key/value cache", f"{human(plan.cache)} per row of {model.context} tokens, all chips"),
        ("checkpoint", human(plan.checkpoint)),
        ("FLOPs per chip and step", f"{plan.flops:.3e}"),
    ]
    found += [(name, f"{human(size)} sent per chip") for name, size in plan.traffic.items() if size]
    found += [(f"time for {name}", _time(seconds)) for name, seconds in plan.seconds.items()]
    found += [
        ("step time, at the roofline", f"{_time(plan.step)}, bound by {plan.bound}"),
        ("tokens per second", f"{tokens / plan.step:,.0f}, {_share(plan):.0f}% of peak"),
    ]
    return found if plan.fits else found + _remedy(plan)


def layout(plan: Plan) -> str:
    """Return mesh, microbatches and remat as the overrides that ask for them."""
    sizes = plan.settings.mesh.sizes(plan.chips)
    mesh = ",".join(f"{axis}:{size}" for axis, size in zip(AXES, sizes, strict=True))
    return (
        f"mesh={mesh} train.accumulate={plan.settings.train.accumulate} "
        f"model.remat={plan.settings.model.remat}"
    )


def _remedy(plan: Plan) -> Rows:
    other = analytic.nearest(plan)
    if other is None:
        return [("nearest that fits", "none on these chips: take more, or a smaller train.batch")]
    return [("nearest that fits", f"{layout(other)} ({human(other.total)} per chip)")]


def _share(plan: Plan) -> float:
    return 100 * plan.seconds["compute"] / plan.step


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
