"""MAUVE against mauve-text 0.4.0: its own figures for these vectors, and live where it is there."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxgen.errors import DataError
from jaxgen.measure import mauve

CENTRES = np.eye(6, 16)
SHARES = {"made": [0.4, 0.3, 0.1, 0.1, 0.1, 0.0], "true": [0.1, 0.2, 0.2, 0.2, 0.1, 0.2]}
# mauve.compute_mauve(p_features=made, q_features=true, num_buckets=6, kmeans_explained_var=0.9)
GOLDEN = 0.5106269712693675


def vectors(kind, number=60):
    rng = np.random.default_rng(list(SHARES).index(kind))
    which = np.repeat(np.arange(6), np.round(np.asarray(SHARES[kind]) * number).astype(int))
    scales = rng.uniform(1, 3, (number, 1))
    return scales * (CENTRES[which] + 0.02 * rng.normal(size=(number, 16)))


def test_it_equals_mauve_text_where_clusters_are_plain():
    made, true = vectors("made"), vectors("true")
    found = mauve.mauve(made, true, seed=0, clusters=6)
    assert found.value == pytest.approx(GOLDEN, abs=1e-6)
    assert 0 <= found.low < found.value < found.high <= 1


def test_it_equals_mauve_text_live():
    theirs = pytest.importorskip("mauve", reason="mauve-text is not installed")
    made, true = vectors("made"), vectors("true")
    found = mauve.mauve(made, true, seed=0, clusters=6)
    live = theirs.compute_mauve(p_features=made, q_features=true, num_buckets=6, verbose=False)
    assert found.value == pytest.approx(live.mauve, abs=1e-6)


def test_it_is_one_for_equal_histograms_and_small_for_disjoint_ones():
    p, q = np.asarray([0.5, 0.5, 0.0, 0.0]), np.asarray([0.0, 0.0, 0.5, 0.5])
    assert mauve.frontier(p, p) == pytest.approx(1, abs=1e-6)
    assert mauve.frontier(p, q) < 0.05
    assert mauve.frontier(p, (p + q) / 2) == pytest.approx(mauve.frontier((p + q) / 2, p))
    same = vectors("made")
    assert mauve.mauve(same, same, seed=0).value == pytest.approx(1, abs=1e-6)


def test_k_means_finds_plain_clusters_whatever_the_seed():
    rng = np.random.default_rng(1)
    which = rng.integers(0, 6, 200)
    points = CENTRES[which] + 0.05 * rng.normal(size=(200, 16))
    for seed in range(3):
        found = mauve.kmeans(points, 6, seed=seed)
        table = np.zeros((6, 6))
        np.add.at(table, (which, found), 1)
        rows, columns = linear_sum_assignment(-table)
        assert table[rows, columns].sum() == 200


@pytest.mark.parametrize(
    ("made", "part"),
    [(np.ones((1, 3)), "1 and 4 texts"), (np.full((4, 3), np.nan), "not finite")],
)
def test_vectors_of_which_no_figure_can_be_made_are_refused(made, part):
    with pytest.raises(DataError, match=part):
        mauve.mauve(made, np.ones((4, 3)), seed=0)


def test_equal_vectors_have_a_figure_and_no_nan():
    found = mauve.mauve(np.ones((4, 3)), np.ones((5, 3)), seed=0)
    assert found.value == pytest.approx(1, abs=1e-6) and np.isfinite(found).all()
