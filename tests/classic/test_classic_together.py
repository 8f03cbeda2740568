"""Every traditional generator drafts for another, exactly, and weighs in at every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.decoding.combined_steps import fused
from jaxgen.errors import ConfigError
from jaxgen.models.classic import hmm, maxent, ngram, template
from jaxgen.models.classic.maxent import MaxEnt
from jaxgen.models.classic.ngram import NGram
from jaxgen.models.classic.template import Template

VOCAB = 7
RNG = np.random.default_rng(0)
TOKENS = np.where(RNG.random(200) < 0.7, np.arange(200) % VOCAB, RNG.integers(0, VOCAB, 200))
OFFSETS = np.asarray([0, 80, 200])
PROMPT, LENGTHS = jnp.asarray([[1, 2, 3], [4, 5, 0]]), jnp.asarray([3, 2])
TARGET = NGram(vocab_size=VOCAB, order=3)


def an_ngram():
    config = NGram(vocab_size=VOCAB, order=2)
    params = ngram.train(config, TOKENS, OFFSETS)
    return ngram.step(params, config), ngram.prefill(params, config, PROMPT, LENGTHS)


def an_hmm():
    params = hmm.init(3, VOCAB, jax.random.key(0))
    return hmm.step(params), hmm.prefill(params, PROMPT, LENGTHS)


def a_maxent():
    config = MaxEnt(vocab_size=VOCAB, order=1, words=VOCAB)
    params = maxent.init(config, TOKENS)
    # Rows are of the commonest words; each word favours the one that follows it in the text.
    likely = 3.0 * np.eye(VOCAB)[(np.arange(VOCAB) + 1) % VOCAB]
    params["weights"]["word1"] = params["weights"]["word1"].at[params["rows"]["word"]].set(likely)
    return maxent.step(params, config), maxent.prefill(config, PROMPT, LENGTHS)


def a_template():
    config = Template(vocab_size=VOCAB, fixed=4, support=2, longest=4, order=2)
    params = template.train(config, TOKENS, OFFSETS, np.arange(VOCAB) == 6)
    return template.step(params, config), template.prefill(params, config, PROMPT, LENGTHS)


KINDS = {"ngram": an_ngram, "hmm": an_hmm, "maxent": a_maxent, "template": a_template}


@pytest.fixture(scope="module")
def target():
    params = ngram.train(TARGET, TOKENS, OFFSETS)
    step = ngram.step(params, TARGET)
    first, cache = ngram.prefill(params, TARGET, PROMPT, LENGTHS)
    plain, _ = jaxgen.decode(step, cache, first, jax.random.key(0), jaxgen.greedy(), 8)
    return step, first, cache, plain


@pytest.mark.parametrize("kind", KINDS)
def test_it_drafts_and_the_target_says_what_it_would_have_said(target, kind):
    step, first, cache, plain = target
    drafting, (own_first, own_cache) = KINDS[kind]()
    assert own_first.tolist() == first.tolist()
    draft = jaxgen.draft_model(drafting, own_cache, jaxgen.chain(jaxgen.temperature(0.5)), 3)
    found = jaxgen.speculate(
        jaxgen.multi_token_step(step), cache, first, jax.random.key(0), jaxgen.greedy(), 8, draft,
        prompt=PROMPT, lengths=LENGTHS,
    )  # fmt: skip
    assert found.tokens.tolist() == plain.tolist()
    assert 0 < int(found.accepted.sum()) <= int(found.guessed.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_it_weighs_in_at_every_token(target, kind):
    step, first, cache, _ = target
    prior, (_, prior_cache) = KINDS[kind]()
    alone, own = step(first, cache)[0], prior(first, prior_cache)[0]
    mixed, caches = fused(step, prior, jnp.asarray([0.5, 0.0]))(first, (cache, prior_cache))
    np.testing.assert_allclose(mixed[0], alone[0] + 0.5 * own[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], alone[1], atol=1e-5)
    again = prior(first, prior_cache)[1]
    for a, b in zip(jax.tree.leaves(caches[1]), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_either_bans_stays_banned_and_wrong_weights_are_refused():
    def fixed(*logits):
        return lambda tokens, cache: (jnp.asarray([logits]), cache)

    a, b = fixed(0.0, -jnp.inf, 0.0), fixed(-jnp.inf, 0.0, 0.0)
    first = jnp.zeros(1, int)
    both, _ = fused(a, b, 1.0)(first, ((), ()))
    assert np.isneginf(both[0, :2]).all() and np.isfinite(both[0, 2])
    off, _ = fused(a, b, 0.0)(first, ((), ()))
    np.testing.assert_allclose(off, jax.nn.log_softmax(a(first, ())[0]))
    with pytest.raises(ConfigError, match="weight=-1"):
        fused(a, b, -1.0)
    with pytest.raises(ConfigError, match="3 and 2 ids"):
        fused(a, fixed(0.0, 0.0), 1.0)(first, ((), ()))
