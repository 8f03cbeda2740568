"""Inside shard_map, with its check of what varies and without, a model does what it does alone."""

from pathlib import Path

import fake_devices
import jax
import jax.numpy as jnp

from jaxgen import varying


def test_models_inside_shard_map_are_those_outside():
    assert fake_devices.run_checks(Path(__file__).with_name("varying_program.py"), 4) == []


def test_outside_of_shard_map_loops_are_those_of_jax():
    def body(total, x):
        return total + x, total

    mine, theirs = (
        jax.make_jaxpr(lambda xs, scan=scan: scan(body, 0.0, xs))(jnp.arange(3.0))
        for scan in (varying.scan, jax.lax.scan)
    )
    assert str(mine) == str(theirs)
