"""Meshes whose axes are Explicit, in part or all, and meshes with axes of other names."""

from pathlib import Path

import fake_devices


def test_results_on_explicit_axes_are_one_devices_and_lie_as_their_rows():
    assert fake_devices.run_checks(Path(__file__).with_name("explicit_program.py"), 4) == []
