"""What the machine at hand can do: matrix products, memory traffic, and memory in use."""

from __future__ import annotations

import gc
from pathlib import Path

import jax

from jaxgen.ops.cpu import allocator
from jaxgen.profile import limits
from jaxgen.profile.chips import Chip
from jaxgen.run import forecast

CLEAR = Path("/proc/self/clear_refs")


def chip(dtype: str) -> Chip:
    """Return one device of this machine as a Chip: rates are measured, memory is what there is."""
    platform = jax.default_backend()
    flops, bandwidth = limits.products(dtype), limits.bandwidth()
    device = jax.devices()[0]
    name = f"this machine's {device.device_kind}, measured"
    kind = platform if platform in ("tpu", "gpu") else "cpu"
    return Chip(name, flops, forecast.device_memory(), bandwidth, bandwidth, kind)


class Peak:
    """The most memory that is used on one device from now on, above what is used now.

    On a CPU that is the process's resident memory, whose high-water mark Linux lets us reset.
    """

    def __init__(self) -> None:
        gc.collect()
        if jax.default_backend() == "cpu":
            allocator.give_back()  # what compiling has freed
            CLEAR.write_text("5")
            self.base = allocator.resident()
        else:
            self.base = 0

    def bytes(self) -> float:
        """Return the peak so far."""
        if jax.default_backend() != "cpu":
            return float(max(d.memory_stats()["peak_bytes_in_use"] for d in jax.local_devices()))
        return (allocator.resident("VmHWM") - self.base) / len(jax.devices())
