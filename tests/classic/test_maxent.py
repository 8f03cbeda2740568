"""Maximum entropy against scikit-learn's logistic regression, and behind the decoding step."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import jaxgen
from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic import maxent
from jaxgen.models.classic.maxent import Fit, MaxEnt

VOCAB, L2 = 5, 0.01
CONFIG = MaxEnt(vocab_size=VOCAB, order=2, words=3, suffixes=2, classes=2)
SUFFIX_OF = np.asarray([0, 1, 0, 1, 1])
RNG = np.random.default_rng(0)
TOKENS = np.where(RNG.random(300) < 0.6, np.arange(300) % 4, RNG.integers(0, VOCAB, 300))
OFFSETS = np.asarray([0, 100, 130, 131, 300])
CLASSES = np.asarray([0, 1, 1, 0])
FIT = Fit(method="lbfgs", rounds=60, l2=L2, batch=128)


@pytest.fixture(scope="module")
def fitted():
    begun = maxent.init(CONFIG, TOKENS, SUFFIX_OF)
    return maxent.train(CONFIG, begun, TOKENS, OFFSETS, FIT, classes=CLASSES)


def indicators(history, params):
    """The features of each place, one column each, as scikit-learn wants them."""
    words = np.asarray(history.words)
    row = np.append(np.asarray(params["rows"]["word"]), CONFIG.words + 1)
    suffix = np.append(SUFFIX_OF, CONFIG.suffixes)
    columns = [np.eye(CONFIG.words + 2)[row[words[:, k]]] for k in range(2)]
    return np.concatenate(
        [*columns, np.eye(3)[suffix[words[:, 0]]], np.eye(2)[np.asarray(history.classes)]], axis=1
    )


def test_the_optimum_is_that_of_scikit_learn(fitted):
    params, history = fitted
    known, targets = maxent.examples(CONFIG, TOKENS, OFFSETS, begin=None, classes=CLASSES)
    inputs = indicators(known, params)
    other = LogisticRegression(C=1 / (L2 * len(targets)), tol=1e-9, max_iter=2000)
    theirs = other.fit(inputs, targets).predict_log_proba(inputs)
    ours = jax.nn.log_softmax(maxent.logits(params, CONFIG, jax.tree.map(jnp.asarray, known)))
    np.testing.assert_allclose(np.exp(ours), np.exp(theirs), atol=1e-3)
    penalty = 0.5 * L2 * (other.coef_**2).sum()
    optimum = penalty - theirs[np.arange(len(targets)), targets].mean()
    assert history[-1] == pytest.approx(optimum, abs=1e-5)
    assert all(b <= a + 1e-5 for a, b in pairwise(history)) and history[0] > history[-1] + 0.2


def test_adagrad_comes_near_the_same_optimum(fitted):
    fit = Fit(method="adagrad", rounds=80, l2=L2, batch=50, rate=0.1)
    begun = maxent.init(CONFIG, TOKENS, SUFFIX_OF)
    _, history = maxent.train(CONFIG, begun, TOKENS, OFFSETS, fit, classes=CLASSES)
    assert history[-1] == pytest.approx(fitted[1][-1], abs=0.015)


def test_the_class_changes_the_next_word(fitted):
    params, _ = fitted
    step = maxent.step(params, CONFIG)
    logits, _ = step(jnp.zeros(2, int), maxent.start(CONFIG, 2, jnp.asarray([0, 1])))
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 0.05


def test_the_decoding_step_equals_the_examples_of_the_text(fitted):
    params, _ = fitted
    row = TOKENS[:6]
    known, _ = maxent.examples(CONFIG, row, np.asarray([0, 6]), begin=None, classes=CLASSES[:1])
    whole = jax.nn.log_softmax(maxent.logits(params, CONFIG, jax.tree.map(jnp.asarray, known)))
    step, cache = maxent.step(params, CONFIG), maxent.start(CONFIG, 1, jnp.asarray([0]))
    for place in range(5):
        logits, cache = step(jnp.asarray(row[place : place + 1]), cache)
        np.testing.assert_allclose(logits[0], whole[place + 1], atol=1e-5)
    prompt = jnp.asarray(row[None])
    first, again = maxent.prefill(CONFIG, prompt, jnp.asarray([5]), jnp.asarray([0]))
    assert int(first[0]) == row[4] and again.words[0].tolist() == [row[3], row[2]]


def test_it_decodes_through_the_same_loop_as_a_transformer(fitted):
    params, _ = fitted
    cache, first = maxent.start(CONFIG, 1, jnp.asarray([0])), jnp.asarray([2])
    out, _ = jaxgen.decode(
        maxent.step(params, CONFIG), cache, first, jax.random.key(0), jaxgen.greedy(), 4
    )
    assert out[0].tolist() == [3, 0, 1, 2]


def test_endings_keep_the_commonest():
    found = maxent.endings(["walking", "talking ", "walked", "a", "looking"], 2, length=3)
    assert found.tolist() == [0, 0, 1, 1, 0]


def test_bad_sizes_and_texts_are_refused():
    with pytest.raises(ConfigError, match="order=0"):
        MaxEnt(vocab_size=4, order=0, words=2)
    with pytest.raises(ConfigError, match="rate=None with method=adagrad"):
        Fit(method="adagrad", rounds=1, l2=0.0, batch=2)
    with pytest.raises(ConfigError, match="suffix_of is given"):
        maxent.init(CONFIG, TOKENS)
    with pytest.raises(ConfigError, match="classes= is given"):
        maxent.start(CONFIG, 1)
    with pytest.raises(DataError, match="no tokens"):
        maxent.examples(CONFIG, TOKENS[:0], OFFSETS[:1], begin=None, classes=CLASSES)
