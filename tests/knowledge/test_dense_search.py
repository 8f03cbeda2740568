"""The nearest rows are those that a comparison with all of them finds."""

import numpy as np
import pytest

from jaxgen.knowledge import vectors


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, 8))
    rows = (centers[rng.integers(0, 40, 3000)] + 0.3 * rng.normal(size=(3000, 8))).astype(
        np.float32
    )
    queries = (rows[::400] + 0.1 * rng.normal(size=(8, 8))).astype(np.float32)
    return *vectors.quantize(rows), queries, rows


def by_hand(codes, scales, queries, euclidean):
    rows = codes.astype(np.float64) * scales[:, None]
    scores = queries @ rows.T - euclidean * np.square(rows).sum(axis=1) / 2
    order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("lists", [False, True])
def test_an_exact_search_is_exact_in_any_order_and_blocks(data, euclidean, lists, monkeypatch):
    codes, scales, queries, _ = data
    monkeypatch.setattr(vectors, "BLOCK", 700)
    monkeypatch.setattr(vectors, "FEW", 100 if lists else 9999)
    rows = vectors.arrange(codes, scales, euclidean=euclidean)
    assert bool(len(rows.centers)) is lists
    vectors._exact.clear_cache()
    scores, ids = vectors.nearest(rows, queries, 10, probes=None)
    expected, order = by_hand(codes, scales, queries, euclidean)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("euclidean", [False, True])
def test_all_lists_hold_all_rows_and_a_few_of_them_nearly_all_that_is_wanted(
    data, euclidean, monkeypatch
):
    codes, scales, queries, _ = data
    monkeypatch.setattr(vectors, "FEW", 100)
    rows = vectors.arrange(codes, scales, euclidean=euclidean)
    assert sorted(rows.ids.tolist()) == list(range(3000)) and rows.sizes.sum() == 3000
    assert rows.longest <= 2 * 3000 // round(2 * 3000**0.5)
    _, order = by_hand(codes, scales, queries, euclidean)
    _, ids = vectors.nearest(rows, queries, 10, probes=10**6)
    np.testing.assert_array_equal(ids, order)
    _, ids = vectors.nearest(rows, queries, 10, probes=24)
    shared = [len(set(a) & set(b)) for a, b in zip(ids.tolist(), order.tolist(), strict=True)]
    assert np.mean(shared) > 9


def test_rounding_moves_a_number_by_half_a_scale_at_most(data):
    codes, scales, _, rows = data
    assert codes.dtype == np.int8
    assert (np.abs(codes * scales[:, None] - rows) <= scales[:, None] * 0.5001).all()
    codes, scales = vectors.quantize(np.zeros((1, 3), np.float32))
    assert not codes.any() and np.isfinite(scales).all()
