"""Beam searches against golden outputs of transformers' `generate`, token for token."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import search_cases as the

import jaxgen
from jaxgen.decoding.history import NO_TOKEN

TABLE = {name: jnp.asarray(x) for name, x in the.weights().items()}


@cache
def golden():
    return dict(np.load(Path(__file__).with_name("golden_search.npz")))


def recurrent(tokens, state):
    state = jnp.tanh(state @ TABLE["turn"] + TABLE["embed"][tokens])
    return state @ TABLE["out"] + TABLE["bias"], state


@partial(jax.jit, static_argnames="num_return")
def search(how, sample, stop, words=None, *, num_return):
    prompt = jnp.asarray(the.PROMPTS)
    state = jnp.zeros((len(prompt), the.D))
    for token in prompt.T[:-1]:
        state = recurrent(token, state)[1]
    first = prompt[:, -1]
    given = {"num_return": num_return, "stop": stop, "prompt": prompt, "words": words}
    return jaxgen.beam_search(recurrent, state, first, None, sample, the.LENGTH, how, **given)


def processors(case):
    made = []
    if "repetition_penalty" in case:
        made.append(jaxgen.repetition_penalty(case["repetition_penalty"]))
    if "no_repeat_ngram_size" in case:
        made.append(jaxgen.no_repeat_ngram(case["no_repeat_ngram_size"]))
    if "bad_words_ids" in case:
        made.append(jaxgen.bad_words(case["bad_words_ids"]))
    if "min_new_tokens" in case:
        made.append(jaxgen.min_new_tokens(case["min_new_tokens"], [the.STOP]))
    return jaxgen.chain(*made)


def ours(case):
    count = case["num_beams"]
    how = jaxgen.beams(
        count,
        length_penalty=case.get("length_penalty", 1.0),
        early_stopping=case["early_stopping"],
        groups=case.get("num_beam_groups", 1),
        diversity=case.get("diversity_penalty", 0.0),
    )
    stops = case.get("stops", [the.STOP])
    stop = np.asarray(stops, np.int32) if stops else None
    words = None
    if "force_words_ids" in case:
        words = jaxgen.must_appear(case["force_words_ids"], over="all")
    return search(how, processors(case), stop, words, num_return=count)


CASES = {"plain": the.PLAIN, "groups": the.GROUPS, "words": the.WORDS}


@pytest.mark.parametrize("kind", CASES)
def test_beams_find_the_texts_and_scores_of_transformers(kind):
    for number, case in enumerate(CASES[kind]):
        found = ours(case)
        wanted = golden()[f"{kind}/{number}/tokens"]
        places = np.arange(the.LENGTH)
        tokens = np.where(places < np.asarray(found.num_generated)[..., None], found.tokens, -1)
        assert tokens.tolist() == wanted.tolist(), case
        if case["num_beams"] > 1:
            scores = golden()[f"{kind}/{number}/scores"]
            np.testing.assert_allclose(found.scores, scores, rtol=2e-6, atol=1e-6)
        penalty = case.get("length_penalty", 1.0)
        total = np.asarray(found.logprobs).sum(-1) / np.asarray(found.num_generated) ** penalty
        np.testing.assert_allclose(total, found.scores, rtol=1e-5, atol=1e-5)


def test_search_settings_do_not_recompile():
    before = search._cache_size()
    chain, stop = jaxgen.chain(), np.asarray([the.STOP], np.int32)
    for penalty, early in ((0.3, True), (1.7, "never"), (0.0, False)):
        search(
            jaxgen.beams(2, length_penalty=penalty, early_stopping=early), chain, stop, num_return=2
        )
    assert search._cache_size() - before <= 1


def test_no_token_is_never_returned():
    found = ours(the.PLAIN[0])
    assert (np.asarray(found.tokens) != NO_TOKEN).all()
