"""The hidden Markov model against hmmlearn, and against every path of a toy."""

from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM

import jaxgen
from jaxgen.models.classic import hmm

TOKENS = np.random.default_rng(0).integers(0, 6, (5, 9))
LENGTHS = np.asarray([9, 4, 1, 7, 9])


@pytest.fixture(scope="module")
def model():
    params = hmm.init(3, 6, jax.random.key(0))
    other = CategoricalHMM(n_components=3, n_features=6, init_params="")
    other.startprob_ = np.exp(np.asarray(params["initial"], float))
    other.transmat_ = np.exp(np.asarray(params["transition"], float))
    other.emissionprob_ = np.exp(np.asarray(params["emission"], float))
    for name in ("startprob_", "transmat_", "emissionprob_"):
        table = getattr(other, name)
        setattr(other, name, table / table.sum(-1, keepdims=True))
    return params, other


def rows():
    return [row[:n, None] for row, n in zip(TOKENS, LENGTHS, strict=True)]


def test_likelihood_posterior_and_viterbi_equal_hmmlearn(model):
    params, other = model
    tokens, lengths = jnp.asarray(TOKENS), jnp.asarray(LENGTHS)
    ours = hmm.likelihood(params, tokens, lengths)
    np.testing.assert_allclose(ours, [other.score(row) for row in rows()], rtol=1e-6, atol=1e-6)
    shares = hmm.posterior(params, tokens, lengths)
    paths, best = hmm.viterbi(params, tokens, lengths)
    for i, row in enumerate(rows()):
        np.testing.assert_allclose(shares[i, : len(row)], other.predict_proba(row), atol=2e-6)
        logp, path = other.decode(row)
        assert paths[i, : len(row)].tolist() == path.tolist()
        assert float(best[i]) == pytest.approx(logp, abs=1e-5)
        assert (np.asarray(paths[i, len(row) :]) == -1).all()


def test_likelihood_is_the_sum_over_all_paths(model):
    params = {name: np.asarray(table) for name, table in model[0].items()}
    row = [0, 3, 5]
    total = -np.inf
    for path in product(range(3), repeat=3):
        logp = params["initial"][path[0]] + params["emission"][path[0], row[0]]
        for a, b, token in zip(path, path[1:], row[1:], strict=False):
            logp += params["transition"][a, b] + params["emission"][b, token]
        total = np.logaddexp(total, float(logp))
    found = hmm.likelihood(model[0], jnp.asarray([row]), jnp.asarray([3]))
    assert float(found[0]) == pytest.approx(total, abs=1e-5)


def test_baum_welch_equals_hmmlearn_and_its_likelihood_never_falls(model):
    params, other = model
    tokens, lengths = jnp.asarray(TOKENS), jnp.asarray(LENGTHS)
    ours, history = hmm.train(params, tokens, lengths, rounds=10, prior=0.0, batch=2)
    assert all(b >= a - 1e-4 for a, b in pairwise(history))
    assert history[-1] > history[0] + 1
    other.n_iter, other.tol = 10, -np.inf
    theirs = other.fit(np.concatenate(rows()), [len(row) for row in rows()])
    np.testing.assert_allclose(history, list(theirs.monitor_.history), rtol=1e-5)
    np.testing.assert_allclose(np.exp(ours["emission"]), theirs.emissionprob_, atol=1e-3)


def test_the_decoding_step_predicts_what_the_likelihood_says(model):
    params, _ = model
    step, cache = hmm.step(params), hmm.start(params, 1)
    for token in (2, 0, 5):
        logits, cache = step(jnp.asarray([token]), cache)
    before = jnp.asarray([[2, 0, 5, 0]])
    for token in range(6):
        whole = hmm.likelihood(params, before.at[0, 3].set(token), jnp.asarray([4]))
        part = hmm.likelihood(params, before, jnp.asarray([3]))
        assert float(logits[0, token]) == pytest.approx(float(whole[0] - part[0]), abs=1e-5)


def test_it_decodes_through_the_same_loop_as_a_transformer(model):
    params, _ = model
    sample = jaxgen.chain(jaxgen.temperature(1.0))
    first, cache = jnp.zeros(400, int), hmm.start(params, 400)
    out, _ = jaxgen.decode(hmm.step(params), cache, first, jax.random.key(1), sample, 1)
    logits, _ = hmm.step(params)(first[:1], cache[:1])
    seen = np.bincount(np.asarray(out[:, 0]), minlength=6) / 400
    np.testing.assert_allclose(seen, np.exp(logits[0]), atol=0.08)
