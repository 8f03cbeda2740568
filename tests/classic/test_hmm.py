"""The hidden Markov model against hmmlearn, and against every path of a toy."""

from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM

import jaxgen
from jaxgen.errors import ConfigError, DataError
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


def sparse(seed, states=3, size=4):
    """Params with zeros: half of all ways, and words that no state says."""
    rng = np.random.default_rng(seed)
    tables = {}
    for name, shape in (
        ("initial", (states,)), ("transition", (states, states)), ("emission", (states, size))
    ):  # fmt: skip
        table = rng.random(shape) * (rng.random(shape) < 0.5)
        table[..., 0] += 0.1
        tables[name] = table / table.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return {name: jnp.asarray(np.log(table)) for name, table in tables.items()}, tables


@pytest.mark.parametrize("seed", range(4))
def test_impossible_texts_have_probability_zero_as_in_hmmlearn(seed):
    params, tables = sparse(seed)
    other = CategoricalHMM(n_components=3, n_features=4, init_params="")
    other.startprob_, other.transmat_ = tables["initial"], tables["transition"]
    other.emissionprob_ = tables["emission"]
    tokens = np.asarray(list(product(range(4), repeat=4)))
    lengths = np.full(len(tokens), 4)
    with np.errstate(divide="ignore"):
        wanted = np.asarray([other.score(row[:, None]) for row in tokens])
    can = np.isfinite(wanted)
    assert can.any() and not can.all()
    found = np.asarray(hmm.likelihood(params, tokens, lengths))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    paths, best = hmm.viterbi(params, tokens, lengths)
    assert (np.asarray(best)[~can] == -np.inf).all() and (np.asarray(paths)[~can] == -1).all()
    np.testing.assert_allclose(
        best[can], [other.decode(r[:, None])[0] for r in tokens[can]], rtol=1e-5
    )
    shares = np.asarray(hmm.posterior(params, tokens, lengths))
    assert (shares[~can] == 0).all()
    np.testing.assert_allclose(
        shares[can], [other.predict_proba(row[:, None]) for row in tokens[can]], atol=1e-5
    )
    # One impossible row leaves the counts of the others alone.
    every, _ = hmm.counts(params, tokens, lengths)
    some, _ = hmm.counts(params, tokens[can], lengths[can])
    for name in every:
        np.testing.assert_allclose(every[name], some[name], rtol=1e-4, atol=1e-5)


def test_after_an_impossible_text_nothing_follows():
    params, _ = sparse(0)
    tokens = np.asarray(list(product(range(4), repeat=3)))
    _, cache = hmm.prefill(params, jnp.asarray(tokens), jnp.full(len(tokens), 3))
    logits, _ = hmm.step(params)(jnp.asarray(tokens[:, -1]), cache)
    for token in range(4):
        longer = np.concatenate([tokens, np.full((len(tokens), 1), token)], axis=1)
        whole = np.asarray(hmm.likelihood(params, longer, np.full(len(tokens), 4)))
        part = np.asarray(hmm.likelihood(params, tokens, np.full(len(tokens), 3)))
        wanted = np.where(np.isfinite(whole), whole - np.where(np.isfinite(part), part, 0), -np.inf)
        np.testing.assert_allclose(logits[:, token], wanted, rtol=1e-4, atol=1e-5)


def test_ways_too_unlikely_for_a_float_still_count():
    # From the first state, all but certain, no way leads to what the second says.
    near = jnp.asarray([0.0, -150.0])
    params = {
        "initial": near,
        "transition": jnp.asarray([[0.0, -jnp.inf], [-jnp.inf, 0.0]]),
        "emission": jnp.asarray([[0.0, -jnp.inf], [-np.log(2.0), -np.log(2.0)]]),
    }
    found = hmm.likelihood(params, np.asarray([[0, 0, 1]]), np.asarray([3]))
    np.testing.assert_allclose(found, [-150 - 3 * np.log(2)], rtol=1e-5)
    shares = hmm.posterior(params, np.asarray([[0, 0, 1]]), np.asarray([3]))
    np.testing.assert_allclose(shares[0], [[0, 1]] * 3, atol=1e-6)


def test_a_state_of_which_nothing_is_counted_keeps_a_distribution(model):
    params, _ = model
    ones = np.ones(5, int)
    trained, _ = hmm.train(params, TOKENS, ones, rounds=2, prior=0.0, batch=5)
    for name, table in trained.items():
        assert not np.isnan(np.asarray(table)).any(), name
        np.testing.assert_allclose(np.exp(table).sum(-1), 1, atol=1e-5)


def test_what_cannot_be_learned_from_is_named(model):
    params, _ = model
    how = {"rounds": 1, "prior": 0.0, "batch": 2}
    for tokens, lengths, part in (
        (TOKENS[:0], LENGTHS[:0], "no rows"),
        (TOKENS - 1, LENGTHS, "token id -1"),
        (TOKENS + 1, LENGTHS, "token id 6"),
        (TOKENS, LENGTHS * 0, r"lengths\[0\]=0"),
        (TOKENS, LENGTHS + 1, r"lengths\[0\]=10 must be 1 to 9"),
    ):
        with pytest.raises(DataError, match=part):
            hmm.train(params, tokens, lengths, **how)
    for wrong in ({"rounds": 0}, {"batch": 0}, {"prior": -1.0}, {"prior": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            hmm.train(params, TOKENS, LENGTHS, **(how | wrong))
    zeros, _ = sparse(0)
    rows = np.asarray(list(product(range(4), repeat=3)))
    logs = np.asarray(hmm.likelihood(zeros, rows, np.full(len(rows), 3)))
    first = int(np.flatnonzero(np.isinf(logs))[0])
    with pytest.raises(DataError, match=f"row {first} of tokens has log likelihood -inf"):
        hmm.train(zeros, rows, np.full(len(rows), 3), **how)
