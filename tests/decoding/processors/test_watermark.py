"""The watermark's detector: what it finds, and what is no text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.decoding.processors.watermark import detect
from jaxgen.errors import ConfigError

MARK = jaxgen.watermark(7, ratio=0.5, bias=8.0, width=2)


@pytest.fixture(scope="module")
def texts():
    """Two texts of 100 ids under the mark, and two drawn by chance."""
    sample = jaxgen.chain(MARK, jaxgen.temperature(1.0))

    def step(tokens, cache):
        return jnp.zeros((2, 50)), cache

    prompt, lengths = jnp.asarray([[1], [2]]), jnp.asarray([1, 1])
    made, _ = jaxgen.decode(
        step,
        jnp.zeros(2),
        prompt[:, 0],
        jax.random.key(0),
        sample,
        100,
        prompt=prompt,
        lengths=lengths,
    )
    return np.concatenate([made, np.random.default_rng(0).integers(0, 50, (2, 100))])


def test_marked_texts_are_told_from_others(texts):
    found = detect(MARK, texts)
    assert found.scored.tolist() == [98] * 4
    assert (found.p[:2] < 1e-9).all() and (found.p[2:] > 1e-3).all()
    np.testing.assert_allclose(found.z, (found.green - 49) / np.sqrt(98 / 4))
    other = detect(jaxgen.watermark(8, ratio=0.5, width=2), texts)
    assert (other.p > 1e-3).all()


def test_of_texts_too_short_nothing_is_said(texts):
    found = detect(MARK, texts, np.asarray([0, 1, 2, 3]))
    assert found.scored.tolist() == [0, 0, 0, 1]
    assert np.isnan(found.z[:3]).all() and np.isnan(found.p[:3]).all() and found.p[3] > 0.1
    assert not len(detect(MARK, texts[:0]).z)


def test_a_loop_proves_nothing_where_repeats_count_once():
    loop = np.full((1, 100), 3)
    assert detect(MARK, loop, repeats="once").scored.tolist() == [1]
    assert detect(MARK, loop).scored.tolist() == [98]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"tokens": np.asarray([1, 2, 3])},
            r"tokens=int64\[3\] has one axis; .* give \[1, S\], tokens\[None\]",
        ),
        ({"tokens": np.ones((1, 4))}, "tokens=float64.* holds floats"),
        ({"tokens": np.asarray([[1, -1, 2, 3]])}, r"tokens\[0, 1\]=-1 must be at least 0"),
        ({"lengths": np.asarray([5])}, r"lengths\[0\]=5 must be at least 0 and at most 4"),
        ({"lengths": np.asarray([-1])}, r"lengths\[0\]=-1"),
        ({"lengths": np.asarray([2, 2])}, r"lengths=int64\[2\] has B=2, but tokens has B=1"),
    ],
)
def test_what_is_no_text_is_refused(change, part):
    how = {"tokens": np.asarray([[1, 2, 3, 4]])} | change
    with pytest.raises(ConfigError, match=part):
        detect(MARK, **how)
    padded = np.asarray([[1, 2, 3, -1]])
    assert detect(MARK, padded, np.asarray([3])).scored.tolist() == [1]
