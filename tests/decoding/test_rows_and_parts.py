"""Rows that began at different times in one chunk, and parts of a chain that are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen.decoding.loop import decode_chunk
from jaxgen.decoding.processors import structure
from jaxgen.decoding.when import When

V, LENGTH, FIRST = 11, 9, jnp.array([0, 4, 9])
TABLE = jax.random.normal(jax.random.key(7), (V, V)) * 2
KEYS = jax.random.split(jax.random.key(1), 3)
WORDS = structure.trie([[1, 2, 3, 4, 5, 6, 7], [2, 2, 8, 1, 1, 1]], 0, V)
CHAINS = {
    "plain": jaxgen.chain(jaxgen.temperature(0.9)),
    "penalties": jaxgen.chain(jaxgen.repetition_penalty(1.7), jaxgen.temperature(0.9)),
    "automaton": jaxgen.chain(WORDS),
    "skipped": jaxgen.chain(When(np.array(True), jaxgen.chain(WORDS, jaxgen.top_k(4)))),
}


def bigram(tokens, cache):
    return TABLE[tokens], cache + 1


def whole_text(sample, limit):
    given = {"prompt": FIRST[:, None], "lengths": np.ones(3, np.int32), "limit": limit}
    return decode_chunk(bigram, jnp.zeros(3), FIRST, KEYS, sample, LENGTH, **given).tokens


@pytest.mark.parametrize("name", CHAINS)
def test_a_chunk_of_rows_that_began_at_different_times_is_what_each_gives_alone(name):
    sample, limit, start = CHAINS[name], np.array([9, 6, 7]), np.array([0, 2, 5])
    whole = whole_text(sample, limit)
    known = jnp.concatenate([FIRST[:, None], whole], axis=1)
    last = jnp.take_along_axis(known, start[:, None], axis=1)[:, 0]
    about = {"start": start, "prompt": known, "lengths": start + 1, "limit": limit}
    found = decode_chunk(bigram, jnp.zeros(3), last, KEYS, sample, 4, **about)
    for row, end in enumerate(np.minimum(start + 4, limit)):
        wanted = whole[row, start[row] : end].tolist()
        assert found.tokens[row, : end - start[row]].tolist() == wanted, row


@pytest.mark.parametrize("name", ["automaton", "skipped"])
def test_processors_go_on_from_their_states_without_reading_the_text_again(name):
    sample, limit = CHAINS[name], np.full(3, 6)
    given = {"lengths": np.ones(3, np.int32), "limit": limit, "prompt": FIRST[:, None]}
    one = decode_chunk(bigram, jnp.zeros(3), FIRST, KEYS, sample, 3, **given)
    blank = {"prompt": jnp.zeros((3, 4), jnp.int32), "lengths": np.full(3, 4), "limit": limit}
    more = {"start": 3, "states": one.states}
    two = decode_chunk(bigram, one.cache, one.tokens[:, -1], KEYS, sample, 3, **blank, **more)
    both = jnp.concatenate([one.tokens, two.tokens], axis=1)
    assert both.tolist() == whole_text(sample, limit)[:, :6].tolist()


def test_a_skipped_part_changes_nothing_and_costs_nothing():
    part = jaxgen.chain(jaxgen.repetition_penalty(1.7), jaxgen.top_k(2))
    about = {"prompt": FIRST[:, None], "lengths": np.ones(3, np.int32)}

    @jax.jit
    def draw(sample):
        return jaxgen.decode(bigram, jnp.zeros(3), FIRST, KEYS, sample, LENGTH, **about)[0]

    heat = jaxgen.temperature(0.9)
    skipped, applied = (
        draw(jaxgen.chain(When(np.array(active), part), heat)) for active in (False, True)
    )
    assert draw._cache_size() == 1
    assert skipped.tolist() == draw(jaxgen.chain(heat)).tolist()
    assert applied.tolist() == draw(jaxgen.chain(*part.processors, heat)).tolist()
    assert skipped.tolist() != applied.tolist()


def test_log_probabilities_that_nobody_wants_are_left_out():
    given = (bigram, jnp.zeros(3), FIRST, KEYS, jaxgen.greedy(), 4)
    some = jaxgen.decode_detailed(*given, top=2, wanted=np.array(True))
    none = jaxgen.decode_detailed(*given, top=2, wanted=np.array(False))
    assert some.tokens.tolist() == none.tokens.tolist()
    assert some.logprobs.tolist() == jaxgen.decode_detailed(*given, top=2).logprobs.tolist()
    assert (some.logprobs < 0).all() and not none.logprobs.any() and not none.top_logprobs.any()
