"""Builds the device mesh, the only place that does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxgen.errors import ConfigError
from jaxgen.mesh.settings import AXES, MeshSettings, over_groups


def make_mesh(settings: MeshSettings, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Return the mesh of all devices (or of those given), or None where there is only one.

    Its axes are those of `AXES`, from the slowest links to the fastest. They are of type Auto: the
    compiler places the collectives of ordinary model code. Raises ConfigError if the sizes don't
    multiply to the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = settings.sizes(len(devices))
    if len(devices) == 1:
        return None
    return mesh_of_sizes(sizes, devices)


def mesh_of_sizes(sizes: Sequence[int], devices: Sequence[Any]) -> Mesh:
    """Return the mesh of these axis sizes, its fastest axes along neighbours of the TPU torus.

    An axis need not be a product of whole sides of the torus: fsdp=256 on a pod of 8 x 8 x 16 is
    not, and `jax.make_mesh` refuses it there. Slices, which only the network joins, are laid out
    as `over_groups` says. Raises ConfigError for slices of different sizes.
    """
    number = _slices(devices)
    outer = over_groups(sizes, number)
    inner = [size // parts for size, parts in zip(sizes, outer, strict=True)]
    if number == 1:
        grid = mesh_utils.create_device_mesh(inner, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Iterable[Any]) -> int:
    held = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(held.values())) > 1:
        words = ", ".join(f"slice {index} has {number}" for index, number in sorted(held.items()))
        raise ConfigError(f"a mesh needs slices of one size, but {words}; start as many in each")
    return len(held)


def describe(mesh: Mesh | None) -> str:
    """Describe the mesh, "data 4 (over 2 slices), fsdp 2"; "one device" for None."""
    if mesh is None:
        return "one device"
    outer = over_groups(tuple(mesh.shape.values()), _slices(mesh.devices.flat))
    sizes = [
        f"{axis} {size}" + (f" (over {parts} slices)" if parts > 1 else "")
        for (axis, size), parts in zip(mesh.shape.items(), outer, strict=True)
        if size > 1
    ]
    return ", ".join(sizes) or "one device of each axis"
