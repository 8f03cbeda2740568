"""Choosing among texts, and two prompts' logits in one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.chain import greedy


def test_best_of_takes_the_first_of_the_best():
    assert jaxgen.best_of(["aa", "b", "cc"], len) == (0, [2.0, 1.0, 2.0])


def test_minimum_risk_is_the_candidate_of_the_largest_expected_utility():
    random = np.random.default_rng(0)
    texts = [random.integers(0, 3, 6).tolist() for _ in range(9)]
    texts.append(texts[2])
    weights = random.random(10).tolist()

    def overlap(one, other):
        return sum(a == b for a, b in zip(one, other, strict=True)) - 0.1 * one[0]

    place, scores = jaxgen.minimum_risk(texts, overlap, weights=weights)
    table = np.array([[overlap(a, b) for b in texts] for a in texts])
    wanted = table @ np.array(weights) / sum(weights)
    np.testing.assert_allclose(scores, wanted)
    assert place == wanted.argmax()


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(errors.ConfigError, match="candidate 1 is NaN"):
        jaxgen.best_of([0.0, float("nan")], float)
    with pytest.raises(errors.ConfigError, match="best_of no candidates"):
        jaxgen.best_of([], float)
    with pytest.raises(errors.ConfigError, match="must be 2 numbers"):
        jaxgen.minimum_risk([1, 2], lambda a, b: 1.0, weights=[1.0])


def test_guidance_mixes_the_log_probabilities_of_two_prompts():
    tables = jax.random.normal(jax.random.key(0), (2, 7, 7)).at[:, :, 6].set(-jnp.inf)

    def step(tokens, which):
        return tables[which, tokens], which

    ones = jnp.ones(2, jnp.int32)
    both = jaxgen.classifier_free_guidance(step, step, jnp.array([1.7, 0.0]))
    logits, _ = both(jnp.array([3, 4]), (0 * ones, ones))
    with_it, without = (np.asarray(jax.nn.log_softmax(table)) for table in tables)
    # The line of transformers' UnbatchedClassifierFreeGuidanceLogitsProcessor.
    wanted = 1.7 * (with_it[3, :6] - without[3, :6]) + without[3, :6]
    np.testing.assert_allclose(logits[0, :6], wanted, rtol=1e-5)
    np.testing.assert_allclose(logits[1, :6], without[4, :6], rtol=1e-5)
    assert np.isneginf(logits[:, 6]).all()
    alone = jaxgen.decode(step, ones, jnp.array([3, 4]), jax.random.key(0), greedy(), 5)[0]
    guided = jaxgen.guided(step, step, 0.0)
    pair = (0 * ones, ones)
    found = jaxgen.decode(guided, pair, jnp.array([3, 4]), jax.random.key(0), greedy(), 5)[0]
    assert found.tolist() == alone.tolist()
    with pytest.raises(errors.ConfigError, match="scale=nan"):
        jaxgen.classifier_free_guidance(step, step, float("nan"))
