"""Energy of a computation in joules, where the platform counts it."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


def joules(run: Callable[[], Any], *, folder: Path = RAPL) -> float | None:
    """Return the joules of processors and GPUs during `run`; None without a counter.

    Processors: Intel's RAPL packages below `folder`, which count for the whole machine and may be
    readable for root alone. GPUs: NVIDIA's total energy counter, by pynvml if it is installed.
    None, too, where a counter has fallen without wrapping around.
    """
    meters = [*_packages(folder), *_gpus()]
    if not meters:
        return None
    before = [read() for read, _ in meters]
    run()
    after = [read() for read, _ in meters]
    # A counter wraps around to zero.
    total = sum(
        b - a if b >= a else b - a + wrap
        for a, b, (_, wrap) in zip(before, after, meters, strict=True)
    )
    return total if isfinite(total) else None


Meter = tuple[Callable[[], float], float]


def _packages(folder: Path) -> list[Meter]:
    """Return (joules so far, joules at which it wraps around) of each processor package."""
    meters: list[Meter] = []
    # Zones below a package, "intel-rapl:0:0", are parts of it.
    for zone in sorted(folder.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue
        counter = zone / "energy_uj"
        try:
            counter.read_text()
            wrap = float((zone / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError):
            continue
        meters.append((lambda counter=counter: float(counter.read_text()) / 1e6, wrap))
    return meters


def _gpus() -> list[Meter]:
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no package, no driver, or a GPU without the counter
        return []
    return [
        (lambda h=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(h) / 1e3, float("inf"))
        for handle in handles
    ]
