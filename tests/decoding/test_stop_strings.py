"""Stop strings end a request wherever tokens split them, and no request by another's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.loop import decode_chunk
from jaxgen.decoding.stop import FOUND, Reason, stop_strings

V, LENGTH = 12, 24
PIECES = [
    b"",
    b"a",
    b"b",
    b"c",
    b"ab",
    b"bca",
    b"\xc3",
    b"\xa9",
    b"\xc3\xa9a",
    b"xaby",
    b" ",
    b"aa",
]
TABLE = jax.random.normal(jax.random.key(7), (V, V)) * 2
FIRST = jnp.array([0, 4, 9, 2])
SETS = [["aab", "\u00e9"], ["ca"], [], ["b a", "y"]]


def spelled(tokens):
    return b"".join(PIECES[token] for token in tokens)


def reading(strings, tokens, row=0):
    """The automaton on the host: its states after each token."""
    state, states = np.broadcast_to(strings.state, max(row + 1, len(strings.state)))[row], []
    for token in tokens:
        state = strings.table[state, strings.classes[token]]
        states.append(int(state))
    return states


def test_a_string_is_found_with_the_token_that_completes_it():
    random = np.random.default_rng(0)
    letters = list("abc y\u00e9")
    hits = 0
    for _ in range(300):
        texts = ["".join(random.choice(letters, random.integers(1, 5))) for _ in range(3)]
        strings = stop_strings(texts, PIECES)
        tokens = random.integers(0, V, 20)
        states = reading(strings, tokens)
        for place in range(len(tokens)):
            held = any(text.encode() in spelled(tokens[: place + 1]) for text in texts)
            assert (states[place] == FOUND) == held, (texts, tokens[: place + 1])
            hits += held
    assert hits > 500


@partial(jax.jit, static_argnames="length")
def made(strings, key, start=0, first=FIRST, stop=None, *, length=LENGTH):
    def step(tokens, cache):
        return TABLE[tokens], cache

    ends = {"stop": stop, "strings": strings, "start": start}
    return jaxgen.decode_detailed(step, (), first, key, jaxgen.chain(), length, top=0, **ends)


def test_each_request_ends_with_its_own_string_and_says_so():
    for seed in range(5):
        key = jax.random.key(seed)
        free = made(stop_strings([[]] * 4, PIECES), key)
        found = made(stop_strings(SETS, PIECES), key)
        for row, strings in enumerate(SETS):
            tokens, count = free.tokens[row].tolist(), int(found.num_generated[row])
            ends = [
                n
                for n in range(1, LENGTH + 1)
                if any(one.encode() in spelled(tokens[:n]) for one in strings)
            ]
            assert count == (ends[0] if ends else LENGTH)
            assert found.tokens[row, :count].tolist() == tokens[:count]
            assert found.reason[row] == (Reason.STRING if ends else Reason.LENGTH)
            assert (found.tokens[row, count:] == found.tokens[row, count - 1]).all()


def test_chunks_follow_a_string_across_their_border():
    key = jax.random.key(2)
    whole = made(stop_strings(SETS, PIECES), key)
    strings, first, parts = stop_strings(SETS, PIECES), FIRST, []
    for start in range(0, LENGTH, 3):
        part = made(strings, key, start, first, length=3)
        strings, first = part.strings, part.tokens[:, -1]
        parts.append(part.tokens)
    assert jnp.concatenate(parts, axis=1).tolist() == whole.tokens.tolist()
    assert part.reason.tolist() == whole.reason.tolist()
    assert Reason.STRING in whole.reason.tolist() and (whole.num_generated % 3 != 0).any()


def test_a_stop_id_is_the_reason_where_both_end_a_text():
    strings = stop_strings([text.decode() for text in PIECES[1:4]], PIECES)
    found = made(strings, jax.random.key(1), stop=jnp.array([1, 2, 3]))
    assert set(found.reason.tolist()) <= {Reason.STOP, Reason.STRING}
    for row in range(4):
        last = int(found.tokens[row, -1])
        assert found.reason[row] == (Reason.STOP if last in (1, 2, 3) else Reason.STRING)


def test_other_strings_run_the_same_program():
    key = jax.random.key(0)
    made(stop_strings(SETS, PIECES), key)
    before = made._cache_size()
    for texts in (["ab"], ["a longer text", "\u00e9\u00e9"], [], ["x"]):
        made(stop_strings([texts, ["y"], ["b"], []], PIECES), key)
    assert made._cache_size() == before


def test_a_lower_limit_ends_a_row_of_the_next_chunk():
    def step(tokens, cache):
        return TABLE[tokens], cache

    key, sample = jax.random.key(3), jaxgen.chain()
    one = decode_chunk(step, (), FIRST, key, sample, 4, limit=np.array([9, 9, 9, 2]))
    assert one.done.tolist() == [False, False, False, True] and one.strings is None
    last = one.tokens[:, -1]
    two = decode_chunk(step, (), last, key, sample, 4, start=4, limit=np.array([0, 9, 9, 2]))
    whole = decode_chunk(step, (), FIRST, key, sample, 8).tokens
    assert two.done.tolist() == [True, False, False, True]
    assert (two.tokens[0] == last[0]).all()
    assert two.tokens[1:3].tolist() == whole[1:3, 4:].tolist()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "stop='' must be a text"),
        (["a", "b\ufffd"], r"U\+FFFD"),
        ([["a"], ["\ud800"]], "surrogate"),
        (["a" * 5000, "b" * 5000], "10000 bytes in all are too many"),
    ],
)
def test_strings_that_can_not_be_are_refused(texts, message):
    with pytest.raises(errors.ConfigError, match=message):
        stop_strings(texts, PIECES)
