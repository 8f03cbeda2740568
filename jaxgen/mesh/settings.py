"""How devices are shared out: the knobs of the `mesh` section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, Literal

from jaxgen import arguments
from jaxgen.errors import ConfigError, nearest
from jaxgen.settings import option

AXES = ("data", "fsdp", "expert", "tensor", "sequence")


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """Sizes of the mesh axes, whose product is the number of devices; ConfigError if bad."""

    data: int | None = option("replicas; null: as many as the other axes leave devices for", None)
    fsdp: int = option("replicas that share parameters and optimizer state among them", 1)
    expert: int = option("devices that share experts, each with rows of its own", 1)
    tensor: int = option("devices that share heads, feed-forward and vocabulary", 1)
    sequence: int = option("devices that share the positions of each row", 1)
    form: Literal["jit", "shard_map", "pmap"] = option(
        "who places the collectives of a step: the compiler, or we, in new or in old style", "jit"
    )

    def __post_init__(self) -> None:
        for name in (*AXES[1:], *(("data",) if self.data is not None else ())):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.form == "pmap" and prod(self._shared()) != 1:
            words = ", ".join(f"{axis}={getattr(self, axis)}" for axis in AXES[1:])
            raise ConfigError(
                f"form=pmap replicates all parameters: {words} must all be 1; use form=jit"
            )

    def _shared(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in AXES[1:])

    @property
    def least(self) -> int:
        """The fewest devices that these sizes take."""
        return (self.data or 1) * prod(self._shared())

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Return the sizes of `AXES` over so many devices; ConfigError if they don't fit them."""
        rest = prod(self._shared())
        data = max(devices // rest, 1) if self.data is None else self.data
        if data * rest != devices:
            fitting = devices // rest
            hint = (
                f"data={fitting} fits"
                if fitting * rest == devices
                else (f"{' * '.join(AXES[1:])} must divide {devices}")
            )
            words = " * ".join(f"{axis}={getattr(self, axis)}" for axis in AXES[1:])
            raise ConfigError(
                f"mesh of data={data} * {words} = {data * rest} devices, but there are {devices}; "
                f"{hint}"
            )
        return data, *self._shared()


def parse(text: str) -> dict[str, Any]:
    """Return the section that "data:2,fsdp:4" abbreviates; ConfigError for anything else."""
    sizes: dict[str, Any] = {}
    for word in text.split(","):
        name, colon, size = (part.strip() for part in word.partition(":"))
        if name not in AXES:
            hint = nearest(name, AXES) or f"; the axes are {', '.join(AXES)}"
            raise ConfigError(f"mesh={text!r} names no axis in {word!r}{hint}")
        if name in sizes:
            raise ConfigError(f"mesh={text!r} names {name} twice")
        if not colon or not size.isdecimal():
            raise ConfigError(f"mesh={text!r}: write {name}:SIZE, as in data:2,fsdp:4")
        sizes[name] = int(size)
    return {"data": 1} | sizes


def over_groups(sizes: Sequence[int], groups: int) -> tuple[int, ...]:
    """Return how many parts of each axis lie in different groups of devices.

    sizes: those of `AXES`, from the slowest links to the fastest; groups: slices of TPUs, or
    machines of GPUs, whose product the result is. So replicas are apart first, then what shares
    parameters, and the axes that send most stay within a group where they can.
    """
    parts = []
    for size in sizes:
        parts.append(gcd(size, groups))
        groups //= parts[-1]
    return tuple(parts)


def divisors_near(size: int, parts: int) -> str:
    """Return in words the multiples of `parts` next to `size`."""
    below, above = size // parts * parts, -(-size // parts) * parts
    return f"{below} or {above}" if below else str(above)
