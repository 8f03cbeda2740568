"""GPTQ, AWQ and SmoothQuant equal the cores of qwix on the same matrix and the same Hessian."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("qwix")

from qwix._src.core import qarray
from qwix.contrib import awq_core, gptq_core, smooth_quant

from jaxgen.compress import scaling, sweep
from jaxgen.ops import grid as grids
from jaxgen.ops.grid import Grid

GRIDS = [Grid(8), Grid(4), Grid(4, 32), Grid(4, 64)]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(128, 128)) * rng.gamma(1.0, size=128)
    x = jnp.asarray(rng.normal(size=(512, 128)) @ mix / 10, jnp.float32)
    return jnp.asarray(rng.normal(size=(24, 128)), jnp.float32), x


def how(grid):
    return qarray.HowToQuantize(
        qtype=jnp.int8 if grid.bits == 8 else jnp.int4,
        channelwise_axes=(0,),
        tiled_axes={} if grid.group is None else {1: grid.group},
        calibration_method="absmax",
    )


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gptq(problem, grid):
    w, x = problem
    # Its groups begin a block, so that both see a group as its columns are when they are reached.
    want, _ = gptq_core.quantize_weight(w, x.T @ x, how(grid), blocksize=grid.group or 128)
    got, found = sweep.gptq(w, x.T @ x, grid, damping=0.01, act_order=False)
    np.testing.assert_allclose(got, qarray.dequantize(want), atol=1e-5)
    np.testing.assert_allclose(found.scale, want.scale, rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_awq(problem, grid):
    w, x = problem
    mean = jnp.mean(jnp.abs(x), axis=0)
    want, factor = awq_core.quantize_weight(w, mean, how(grid))
    got = scaling.awq(w, mean, grid)
    np.testing.assert_allclose(got, factor[0], rtol=1e-5)
    numbers, _ = grids.round_to_nearest(w * got, grid)
    tie = jnp.abs(jnp.abs(numbers) / grids.steps(w * got, grid).by_column(128).scale)
    same = jnp.abs(numbers - qarray.dequantize(want)) <= 1e-5
    assert bool(jnp.all(same | (tie >= grid.highest))) and float(jnp.mean(same)) > 0.95


def test_smoothquant(problem):
    w, x = problem
    most, largest = jnp.max(jnp.abs(x), axis=0), jnp.max(jnp.abs(w), axis=0)
    want = smooth_quant.compute_scales_ratio(most, largest, alpha=0.4)
    np.testing.assert_allclose(scaling.smooth(w, most, 0.4), want, rtol=1e-5)
