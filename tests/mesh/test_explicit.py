"""Meshes whose axes are Explicit, in part or all, and meshes with axes of other names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_devices


def test_results_on_explicit_axes_are_one_devices_and_lie_as_their_rows():
    program = Path(__file__).with_name("explicit_program.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        env=dict(os.environ) | fake_devices.flags(4),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
