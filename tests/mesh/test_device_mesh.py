"""How devices are laid out where only the network joins slices of them."""

from dataclasses import dataclass
from itertools import product

import pytest

from jaxgen.errors import ConfigError
from jaxgen.mesh import device_mesh
from jaxgen.mesh.settings import AXES, over_groups


@dataclass(frozen=True)
class Chip:
    """What laying out looks at of a device."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    device_kind: str
    platform: str = "tpu"
    process_index: int = 0
    core_on_chip: int = 0


def chips(kind, slices, *sides):
    places = list(product(*map(range, (*sides, 1)[:3])))
    return [
        Chip(number * len(places) + i, number, place, kind)
        for number in range(slices)
        for i, place in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("kind", "slices", "sides", "sizes"),
    [
        ("TPU v5 lite", 2, (4, 4), (2, 16, 1, 1, 1)),
        ("TPU v5 lite", 2, (2, 2), (2, 4, 1, 1, 1)),
        ("TPU v5 lite", 2, (16, 16), (4, 64, 1, 2, 1)),
        ("TPU v6 lite", 2, (4, 4), (2, 8, 1, 2, 1)),
        ("TPU v5", 2, (2, 2, 2), (2, 8, 1, 1, 1)),
        ("TPU v5", 4, (4, 4, 4), (4, 64, 1, 1, 1)),
    ],
)
def test_only_replicas_lie_in_different_slices(kind, slices, sides, sizes):
    devices = chips(kind, slices, *sides)
    mesh = device_mesh.mesh_of_sizes(sizes, devices)
    assert dict(mesh.shape) == dict(zip(AXES, sizes, strict=True))
    assert {one.id for one in mesh.devices.flat} == {one.id for one in devices}
    for group in mesh.devices.reshape(sizes[0], -1):
        assert len({one.slice_index for one in group}) == 1
    assert f"data {sizes[0]} (over {slices} slices)" in device_mesh.describe(mesh)


def test_an_axis_that_must_cross_slices_is_cut_once_by_them_and_said_to_be():
    mesh = device_mesh.mesh_of_sizes((1, 8, 1, 1, 1), chips("TPU v5 lite", 2, 2, 2))
    assert [one.slice_index for one in mesh.devices.flat] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert device_mesh.describe(mesh) == "fsdp 8 (over 2 slices)"


def test_slices_of_different_sizes_are_named():
    devices = chips("TPU v5 lite", 2, 2, 2)
    with pytest.raises(ConfigError, match="slice 0 has 4, slice 1 has 3"):
        device_mesh.mesh_of_sizes((1, 7, 1, 1, 1), devices[:-1])


@pytest.mark.parametrize(
    ("sizes", "groups", "parts"),
    [
        ((4, 8, 1, 1, 1), 2, (2, 1, 1, 1, 1)),
        ((2, 8, 1, 2, 1), 4, (2, 2, 1, 1, 1)),
        ((1, 1, 1, 8, 1), 2, (1, 1, 1, 2, 1)),
        ((3, 4, 1, 1, 1), 2, (1, 2, 1, 1, 1)),
    ],
)
def test_groups_part_the_slowest_axes_first(sizes, groups, parts):
    assert over_groups(sizes, groups) == parts
