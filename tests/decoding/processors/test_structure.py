"""Structured output: what ends is of the structure, whatever the model would rather say."""

import itertools
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.processors import structure
from jaxgen.decoding.stop import Reason

WORDS = ["tr", "ue", "fal", "se", '"a', '":', "12", "é", "{}", "nul"]
PIECES = [b"", *(bytes([i]) for i in range(32, 127)), "é".encode()[:1], "é".encode()[1:]]
PIECES += [word.encode() for word in WORDS]
STOP, V, LENGTH = 0, len(PIECES) + 3, 24  # the model has more rows than the tokenizer has pieces
TABLE = jax.random.normal(jax.random.key(0), (V, V)) * 3


def bigram(tokens, cache):
    return TABLE[tokens], cache


@partial(jax.jit, static_argnames="length")
def draw(machine, seed, start=0, first=None, prompt=None, lengths=None, *, length=LENGTH):
    batch = 32 if first is None else first.shape[0]
    first = jnp.arange(32) % V if first is None else first
    prompt = first[:, None] if prompt is None else prompt
    sample = jaxgen.chain(machine, jaxgen.temperature(1.5))
    keys = jax.random.split(seed, batch)
    given = {"stop": jnp.array([STOP]), "prompt": prompt, "lengths": lengths, "start": start}
    return jaxgen.decode_detailed(bigram, (), first, keys, sample, length, top=0, **given)


def texts(out):
    rows = zip(np.asarray(out.tokens).tolist(), np.asarray(out.num_generated).tolist(), strict=True)
    return [b"".join(PIECES[t] for t in row[:made]).decode(errors="replace") for row, made in rows]


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "n": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("pattern", ["[a-c]+(12|é){1,2}", "(true|false)[0-9]*", "x|y{3}|"])
def test_every_text_matches_the_expression_within_its_tokens(pattern):
    out = draw(structure.regex(pattern, PIECES, STOP, within=LENGTH), jax.random.key(1))
    assert (out.reason == Reason.STOP).all()
    found = texts(out)
    assert all(re.fullmatch(pattern, text) for text in found), found
    assert len(set(found)) > 1


def test_every_text_of_a_schema_is_json_of_it():
    out = draw(structure.json_schema(SCHEMA, PIECES, STOP, within=LENGTH), jax.random.key(2))
    for text in texts(out):
        value = json.loads(text)
        assert isinstance(value["a"], bool) and set(value) <= {"a", "n"}


def test_choices_and_free_requests_share_a_batch():
    wanted = ["true", "false", "a.b", "null"]
    one = structure.choices(wanted, PIECES, STOP)
    number = structure.regex("[0-9]{3}", PIECES, STOP)
    machine = structure.requests([one, None, number] * 10 + [one, one])
    found = draw(machine, jax.random.key(3))
    said = texts(found)
    assert all(text in wanted for text in said[::3]) and len(set(said[:30:3])) > 1
    assert all(re.fullmatch("[0-9]{3}", text) for text in said[2:30:3])
    free, _ = jaxgen.decode(
        bigram,
        (),
        jnp.arange(32) % V,
        jax.random.split(jax.random.key(3), 32),
        jaxgen.chain(jaxgen.suppress(list(range(len(PIECES), V))), jaxgen.temperature(1.5)),
        LENGTH,
        stop=jnp.array([STOP]),
    )
    assert np.asarray(found.tokens)[1:30:3].tolist() == np.asarray(free)[1:30:3].tolist()


def test_chunks_go_on_in_the_state_that_they_left():
    machine = structure.regex("[a-f0-9]{14}", PIECES, STOP, within=LENGTH)
    whole = draw(machine, jax.random.key(4)).tokens
    first, prompt, parts = jnp.arange(32) % V, (jnp.arange(32) % V)[:, None], []
    for start in range(0, LENGTH, 8):
        padded = jnp.pad(prompt, ((0, 0), (0, LENGTH + 1 - prompt.shape[1])))
        lengths = jnp.full(32, prompt.shape[1])
        part = draw(machine, jax.random.key(4), start, first, padded, lengths, length=8)
        parts.append(part.tokens)
        prompt, first = jnp.concatenate([prompt, part.tokens], axis=1), part.tokens[:, -1]
    assert jnp.concatenate(parts, axis=1).tolist() == whole.tolist()


def test_a_trie_allows_exactly_its_sequences_also_to_beams():
    sequences = [[5, 6, 7], [5, 6], [5, 9, 9, 4], [8]]
    machine = structure.trie(sequences, STOP, V)
    logprobs = np.asarray(jax.nn.log_softmax(TABLE), np.float64)
    first = 3
    scored = []
    for text in sequences:
        steps = itertools.pairwise((first, *text, STOP))
        scored.append((sum(logprobs[pair] for pair in steps), text))
    found = jaxgen.beam_search(
        *(bigram, (), jnp.array([first]), None, jaxgen.chain(machine), 6),
        jaxgen.beams(4, length_penalty=0.0, early_stopping="never"),
        num_return=4,
        stop=jnp.array([STOP]),
        prompt=jnp.array([[first]]),
    )
    for place, (score, text) in enumerate(sorted(scored, reverse=True)):
        assert found.tokens[0, place, : found.num_generated[0, place]].tolist() == [*text, STOP]
        np.testing.assert_allclose(found.scores[0, place], score, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: structure.regex("(a", PIECES, STOP), r"regex '\(a' can't be compiled"),
        (lambda: structure.regex("(?=a)b", PIECES, STOP), "no look-around"),
        (lambda: structure.regex("[a]{9}", PIECES, STOP, within=9), "needs 10 tokens.*within=9"),
        (lambda: structure.choices([], PIECES, STOP), r"choices=\[\]"),
        (lambda: structure.trie([[V]], STOP, V), "trie: token"),
        (lambda: structure.requests([None]), "every automaton is None"),
        (lambda: structure.json_schema("{", PIECES, STOP), "JSON schema '{'"),
    ],
)
def test_structures_that_cannot_be_are_refused_in_one_line(make, text):
    with pytest.raises(errors.ConfigError, match=text) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_another_pattern_does_not_recompile():
    before = draw._cache_size()
    for pattern in ("[a-c]{4}", "[d-f]{4}", "[x-z]{4}"):
        draw(structure.regex(pattern, PIECES, STOP, within=9), jax.random.key(0), length=9)
    assert draw._cache_size() - before == 1
