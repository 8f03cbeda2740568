"""Rounding, GPTQ, AWQ and masks of one matrix against plain references in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.compress import masks, scaling, sweep
from jaxgen.compress.matrix import codes_of
from jaxgen.ops import grid as grids
from jaxgen.ops.grid import Grid
from jaxgen.pretrained.coded import to_leaf

OUT, IN, ROWS = 12, 64, 256
GRIDS = [Grid(8), Grid(4), Grid(4, 32), Grid(4, 32, symmetric=False), Grid(8, 32)]


@pytest.fixture(scope="module")
def problem():
    """Return (weight [OUT, IN], inputs [ROWS, IN]) whose channels depend on each other."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(IN, IN)) * rng.gamma(1.0, size=IN)
    x = rng.normal(size=(ROWS, IN)) @ mix / 8
    return rng.normal(size=(OUT, IN)).astype("float32"), x.astype("float32")


def by_groups(w, grid):
    """Round a matrix number by number, as the formula says."""
    out = np.empty_like(w)
    width = grid.group or w.shape[1]
    for o in range(w.shape[0]):
        for start in range(0, w.shape[1], width):
            part = w[o, start : start + width].astype(np.float64)
            if grid.symmetric:
                scale, zero = abs(part).max() / (grid.highest + 0.5), 0
            else:
                scale = (max(part.max(), 0) - min(part.min(), 0)) / (grid.highest - grid.lowest)
                zero = round(grid.lowest - min(part.min(), 0) / scale)
            ints = np.clip(np.rint(part / scale + zero), grid.lowest, grid.highest)
            out[o, start : start + width] = (ints - zero) * scale
    return out


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_is_to_the_nearest_number_of_the_grid(problem, grid):
    w, _ = problem
    got, _ = grids.round_to_nearest(jnp.asarray(w), grid)
    want = by_groups(w, grid)
    # The largest number of a group lies half way between two steps, and may go to either.
    tie = np.isclose(abs(w - got), abs(w - want), rtol=1e-4, atol=1e-6)
    assert np.all(np.isclose(got, want, atol=1e-5) | tie)
    assert np.mean(np.isclose(got, want, atol=1e-5)) > 0.95


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_leaf_multiplies_as_the_numbers_that_it_was_made_of(problem, grid):
    w, x = problem
    numbers, grid_steps = grids.round_to_nearest(jnp.asarray(w), grid)
    leaf = to_leaf(codes_of(numbers, grid_steps, grid), (3, 4), 2)
    rows = jnp.asarray(x[:6]).reshape(2, 3, 8, 8)
    got = leaf.contract("BTNH,NHKG->BTKG", rows, "float32")
    np.testing.assert_allclose(got, (x[:6] @ numbers.T).reshape(2, 3, 3, 4), rtol=1e-4, atol=1e-4)


def test_int4_packs_two_numbers_to_a_byte_and_widens_to_the_same(problem):
    w, _ = problem
    for grid in (Grid(4, 32), Grid(4, 32, symmetric=False)):
        numbers, grid_steps = grids.round_to_nearest(jnp.asarray(w), grid)
        leaf = to_leaf(codes_of(numbers, grid_steps, grid), (OUT,), 1)
        assert leaf.values.shape == (OUT, IN // 2) and leaf.values.dtype == jnp.uint8
        wide = leaf.widened()
        back = wide.values.reshape(OUT, 2, 32) * wide.scale[..., None]
        np.testing.assert_allclose(back.reshape(OUT, IN), numbers, rtol=1e-6)
        joined = type(leaf).join([leaf, leaf]).cut(OUT, (OUT,))
        np.testing.assert_array_equal(joined.values, leaf.values)


def one_by_one(w, gram, quantise, damping):
    """GPTQ's loop: a column, its error, and all columns after it, in float64."""
    w, gram = w.astype(np.float64).copy(), gram.astype(np.float64)
    gram = gram + damping * np.mean(np.diag(gram)) * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    out = np.empty_like(w)
    for i in range(w.shape[1]):
        out[:, i] = quantise(w, i)
        error = (w[:, i] - out[:, i]) / upper[i, i]
        w[:, i:] -= np.outer(error, upper[i, i:])
    return out


def test_gptq_is_the_loop_of_its_paper(problem):
    w, x = problem
    scale = abs(w).max(1) / 7.5

    def nearest(w, i):
        return np.clip(np.rint(w[:, i] / scale), -8, 7) * scale

    want = one_by_one(w, x.T @ x, nearest, 0.01)
    got, _ = sweep.gptq(
        jnp.asarray(w), jnp.asarray(x.T @ x), Grid(4), damping=0.01, act_order=False
    )
    assert np.mean(np.isclose(got, want, atol=1e-4)) > 0.99


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_lies_on_the_grid_and_loses_less_than_rounding(problem, grid, act_order):
    w, x = problem
    got, found = sweep.gptq(
        jnp.asarray(w), jnp.asarray(x.T @ x), grid, damping=0.01, act_order=act_order
    )
    nearest, _ = grids.round_to_nearest(jnp.asarray(w), grid)
    assert np.sum((x @ (w - got).T) ** 2) < 0.8 * np.sum((x @ (w - nearest).T) ** 2)
    scale = np.repeat(found.scale, IN // found.scale.shape[1], 1)
    ints = np.asarray(got) / scale
    np.testing.assert_allclose(ints, np.rint(ints), atol=2e-3)
    assert ints.min() >= 2 * grid.lowest and ints.max() <= 2 * grid.highest + 1


def test_gptq_of_inputs_that_are_never_there_is_zero_and_finite(problem):
    w, x = problem
    x = x.copy()
    x[:, 5] = 0
    got, _ = sweep.gptq(
        jnp.asarray(w), jnp.asarray(x.T @ x), Grid(4, 32), damping=0.01, act_order=True
    )
    assert np.all(np.isfinite(got)) and not np.any(got[:, 5])


def test_awq_protects_channels_with_large_inputs(problem):
    w, x = problem
    mean, grid = abs(x).mean(0), Grid(4, 32)
    factor = scaling.awq(jnp.asarray(w), jnp.asarray(mean), grid)
    scaled, _ = grids.round_to_nearest(jnp.asarray(w) * factor, grid)
    nearest, _ = grids.round_to_nearest(jnp.asarray(w), grid)

    def weighed(got):
        return float(np.mean(((w - got) * mean) ** 2))

    assert weighed(scaled / factor) < weighed(nearest)
    assert np.corrcoef(np.log(factor), np.log(mean))[0, 1] > 0.99


def test_smoothing_divides_ranges_between_inputs_and_weights(problem):
    w, x = problem
    most = abs(x).max(0)
    factor = scaling.smooth(jnp.asarray(w), jnp.asarray(most), 0.5)
    np.testing.assert_allclose(most / factor, abs(w * factor).max(0), rtol=1e-4)


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8)])
def test_patterns_have_their_zeros_in_every_run(problem, pattern):
    w, x = (jnp.asarray(a) for a in problem)
    where = {"pattern": pattern, "sparsity": 0.5}
    found = [
        jnp.where(masks.magnitude(w, **where), w, 0),
        jnp.where(masks.wanda(w, jnp.sum(x**2, 0), **where), w, 0),
        sweep.sparsegpt(w, x.T @ x, damping=0.01, **where),
    ]
    for got in found:
        zeros = np.sum(np.asarray(got).reshape(-1, pattern[1]) == 0, axis=1)
        assert np.all(zeros == pattern[0])


def test_masks_without_a_pattern_are_those_of_plain_sorting(problem):
    w, x = problem
    squares = np.sum(x**2, 0)
    rest = {"pattern": None, "sparsity": 0.25}
    got = masks.magnitude(jnp.asarray(w), **rest)
    np.testing.assert_array_equal(got, abs(w) >= np.sort(abs(w).ravel())[w.size // 4])
    scores = abs(w) * np.sqrt(squares)
    want = scores >= np.sort(scores, axis=1)[:, IN // 4, None]
    np.testing.assert_array_equal(masks.wanda(jnp.asarray(w), jnp.asarray(squares), **rest), want)


def test_sparsegpt_is_the_loop_of_its_paper_and_loses_less_than_wanda(problem):
    w, x = problem
    gram = x.T @ x
    damped = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(IN)
    upper = np.linalg.cholesky(np.linalg.inv(damped.astype(np.float64))).T
    keep = np.ones_like(w, bool)

    def drop(w, i):
        if i % 4 == 0:
            scores = (w[:, i : i + 4] / np.diag(upper)[i : i + 4]) ** 2
            keep[:, i : i + 4] = np.argsort(np.argsort(scores, 1), 1) >= 2
        return np.where(keep[:, i], w[:, i], 0)

    want = one_by_one(w, gram, drop, 0.01)
    where = {"pattern": (2, 4), "sparsity": 0.5}
    got = sweep.sparsegpt(jnp.asarray(w), jnp.asarray(gram), damping=0.01, **where)
    np.testing.assert_allclose(got, want, atol=1e-2)
    np.testing.assert_array_equal(np.asarray(got) == 0, want == 0)
    by_norm = jnp.where(masks.wanda(jnp.asarray(w), jnp.sum(jnp.asarray(x) ** 2, 0), **where), w, 0)
    assert np.sum((x @ (w - got).T) ** 2) < 0.8 * np.sum((x @ (w - by_norm).T) ** 2)
