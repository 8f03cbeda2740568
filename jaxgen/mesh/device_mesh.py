"""Builds the device mesh, the only place that does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxgen.mesh.settings import AXES, MeshSettings


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
    not, and `jax.make_mesh` refuses it there.
    """
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe(mesh: Mesh | None) -> str:
    """Describe the mesh, "data 4, fsdp 2"; "one device" for None."""
    if mesh is None:
        return "one device"
    sizes = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return ", ".join(sizes) or "one device of each axis"
