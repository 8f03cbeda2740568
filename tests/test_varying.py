"""Inside shard_map, with its check of what varies and without, a model does what it does alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_devices
import jax
import jax.numpy as jnp

from jaxgen import varying


def test_models_inside_shard_map_are_those_outside():
    program = Path(__file__).with_name("varying_program.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        env=dict(os.environ) | fake_devices.flags(4),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_outside_of_shard_map_loops_are_those_of_jax():
    def body(total, x):
        return total + x, total

    mine, theirs = (
        jax.make_jaxpr(lambda xs, scan=scan: scan(body, 0.0, xs))(jnp.arange(3.0))
        for scan in (varying.scan, jax.lax.scan)
    )
    assert str(mine) == str(theirs)
