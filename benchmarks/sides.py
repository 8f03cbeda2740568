"""Two or more sides of one question, timed in turn in one process, and the facts beside a figure.

A machine that is shared or throttled slows whatever runs at the moment, so sides are never timed
one after the other but A B B A ...; what is reported are medians, their ratio and the spread.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# JAX would take three quarters of a GPU's memory for itself, beside the sides that share it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

PAUSE = 0.3  # s: threads of a side wait busily for more work, Intel's OpenMP ones for 0.2 s
RESULTS = Path(os.environ.get("JAXGEN_RESULTS") or Path(__file__).parent / "results")


def in_turn(
    sides: Mapping[str, Callable[[], Any]], rounds: int, *, pause: float = 0.0
) -> dict[str, list[float]]:
    """Return the seconds of each side's calls, one call of each side a round.

    A side returns only once its work is done (`jax.block_until_ready`). Every other round goes
    backwards, so that no side always follows the same one. pause: seconds before each call, where
    the threads of a side go on waiting busily after it, as Intel's OpenMP lets them for 0.2 s.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in names:
            time.sleep(pause)
            begin = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def once(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return (result, seconds) of one call, such as a compilation or a first call."""
    begin = time.perf_counter()
    result = call()
    return result, time.perf_counter() - begin


def figures(seconds: Sequence[float]) -> dict[str, Any]:
    """Return median, least, largest and spread: (largest - least) / median."""
    middle = statistics.median(seconds)
    return {
        "median_seconds": round(middle, 5),
        "least": round(min(seconds), 5),
        "largest": round(max(seconds), 5),
        "spread": round((max(seconds) - min(seconds)) / middle, 3),
        "rounds": len(seconds),
    }


def ratio(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> dict[str, float]:
    """Return how much longer `over` takes than `under`: of the medians, and round by round."""
    pairs = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    middle = statistics.median(seconds[over]) / statistics.median(seconds[under])
    return {
        "of_medians": round(middle, 3),
        "median_of_rounds": round(statistics.median(pairs), 3),
        "least": round(min(pairs), 3),
        "largest": round(max(pairs), 3),
    }


def on_cpu() -> None:
    """Keep this process, and those that it starts, on the CPU: for peers that know no GPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def one_device(where: Mapping[str, str]) -> None:
    """End the program unless all sides, by name, run on one kind of device."""
    if len(set(where.values())) > 1:
        told = ", ".join(f"{name} on {kind}" for name, kind in where.items())
        raise SystemExit(
            f"{told}: install JAX and torch for one device, or hide the GPU with "
            f"CUDA_VISIBLE_DEVICES= and JAX_PLATFORMS=cpu"
        )


def threads() -> int:
    """Return how many cores this process may use, having told torch, if there, to use as many.

    XLA's pool on the CPU has as many threads as that by itself.
    """
    count = len(os.sched_getaffinity(0))
    try:
        import torch
    except ImportError:
        return count
    torch.set_num_threads(count)
    return count


def environment(packages: Sequence[str] = ("jax", "jaxlib", "flax", "numpy")) -> dict[str, Any]:
    """Return hardware, versions, commit, load and time, as plain data."""
    import jax

    return {
        "commit": commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "devices": {"kind": jax.devices()[0].device_kind, "count": len(jax.devices())},
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
    }


def commit() -> str:
    """Return what git calls this tree; "-dirty" if it has changes."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "not from a checkout"


def write(name: str, found: Mapping[str, Any], *, show: bool = True) -> None:
    """Write results/NAME.json and print it, where `show` says so."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    if show:
        print(text)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
