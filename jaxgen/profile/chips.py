"""Accelerators by their makers' data sheets, and topologies in words."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError, nearest


@arguments.checked
@dataclass(frozen=True)
class Chip:
    """One accelerator: dense bfloat16 FLOP/s, memory in bytes, bytes/s of memory and of links.

    group: how many its links join, a slice of TPUs or a machine of GPUs; 0 for all there are.
    network: bytes/s of its share of what joins the groups.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float  # to all neighbours together, in one direction
    platform: Literal["tpu", "gpu", "cpu"] = "tpu"
    kinds: tuple[str, ...] = ()  # how JAX's `device_kind` begins, where not as `name`
    network: float = 12.5e9
    group: int = 0

    def groups(self, count: int) -> int:
        """Return in how many groups of one size `count` chips lie."""
        least = -(-count // (self.group or count))
        return next(number for number in range(least, count + 1) if count % number == 0)


GIB = 2.0**30
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1.228e12, 300e9, network=6.25e9),
    "v5e": Chip(
        "TPU v5e", 197e12, 16 * GIB, 0.819e12, 200e9, kinds=("TPU v5 lite",), network=3.125e9
    ),
    "v5p": Chip("TPU v5p", 459e12, 95 * GIB, 2.765e12, 600e9, kinds=("TPU v5",), network=6.25e9),
    "v6e": Chip(
        "TPU v6e", 918e12, 32 * GIB, 1.64e12, 448e9, kinds=("TPU v6 lite",), network=12.5e9
    ),
    "a100": Chip("NVIDIA A100", 312e12, 80e9, 2.039e12, 300e9, "gpu", network=25e9, group=8),
    "h100": Chip("NVIDIA H100", 989e12, 80e9, 3.35e12, 450e9, "gpu", network=50e9, group=8),
    "h200": Chip("NVIDIA H200", 989e12, 141e9, 4.8e12, 450e9, "gpu", network=50e9, group=8),
}
LARGEST = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256}  # chips of one pod
# Of chips to plan for: there is no compiler for an A100 here.
DIMENSIONS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2, "h100": 1, "h200": 1}


def rows() -> list[tuple[str, str]]:
    """Return (topology, figures) of each chip that can be planned for."""
    chips = []
    for kind, dimensions in DIMENSIONS.items():
        chip, shape = CHIPS[kind], "x".join(["4"] * dimensions)
        most = f"; pods of up to {LARGEST[kind]}" if kind in LARGEST else ""
        chips.append(
            (
                f"{kind}:{shape}",
                f"{chip.name}: {chip.memory / 1e9:.0f} GB, {chip.flops / 1e12:.0f} TFLOP/s in "
                f"bfloat16, {chip.bandwidth / 1e12:.2f} TB/s{most}",
            )
        )
    return [*chips, ("here", "this machine, measured")]


def of_device(device_kind: str) -> Chip | None:
    """Return the chip that JAX calls `device_kind`, or None: "TPU v5 lite" is a v5e, no v5p."""
    starts = {start: chip for chip in CHIPS.values() for start in (chip.name, *chip.kinds)}
    fitting = [start for start in starts if device_kind.startswith(start)]
    return starts[max(fitting, key=len)] if fitting else None


def parse(topology: str) -> tuple[Chip, int]:
    """Return (chip, how many) of "v5p:8x8x16", "2xv5e:4x4" or "h200:8".

    Raises ConfigError with the remedy if it is bad.
    """
    slices, slice_ = slices_of(topology)
    kind, colon, shape = slice_.partition(":")
    if kind not in DIMENSIONS:
        hint = nearest(kind, DIMENSIONS) or f"; there are {', '.join(DIMENSIONS)}, and here"
        raise ConfigError(f"topology {topology!r}: {kind!r} is no chip to plan for{hint}")
    dimensions = DIMENSIONS[kind]
    example = f"{kind}:{'x'.join(['4'] * dimensions)}"
    if not colon or not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})*", shape):
        raise ConfigError(f"topology {topology!r} has no shape; write it as {example}")
    sizes = [int(size) for size in shape.split("x")]
    if len(sizes) != dimensions:
        raise ConfigError(
            f"topology {topology!r} has {len(sizes)} dimensions, {kind} has {dimensions}, as in "
            f"{example}"
        )
    count = prod(sizes)
    if count > LARGEST.get(kind, count):
        raise ConfigError(
            f"topology {topology!r} has {count} chips; a pod of {kind} has at most {LARGEST[kind]}"
        )
    chip = CHIPS[kind]
    if slices > 1 and chip.platform == "gpu":
        raise ConfigError(
            f"topology {topology!r}: slices are of TPUs; write {kind}:{slices * count}, machines "
            f"of {chip.group}"
        )
    return (replace(chip, group=count) if slices > 1 else chip), slices * count


def slices_of(topology: str) -> tuple[int, str]:
    """Return (how many slices, which) of "2xv5e:4x4", (1, "v5e:4x4") of "v5e:4x4"."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([a-z].*)", topology)
    return (int(match[1]), match[2]) if match else (1, topology)
