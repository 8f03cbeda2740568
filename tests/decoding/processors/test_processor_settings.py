"""Settings are data: one program serves them all, mixed in a batch; contradictions are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.processors import structure

V, LENGTH = 11, 12
TABLE = jax.random.normal(jax.random.key(7), (V, V)) * 2
PIECES = [b"", *(bytes([97 + i]) for i in range(V - 1))]
SETTINGS = {
    "temperature": [0.0, 0.7, 1.3, 1.0],
    "count": [3, V, 5, V],
    "mass": [1.0, 0.8, 1.0, 0.5],
    "penalty": [1.0, 1.5, 0.8, 1.2],
    "presence": [0.0, 0.5, 0.0, -0.3],
    "frequency": [0.3, 0.0, 0.2, 0.0],
    "ngram": [0, 2, 3, 0],
    "least": [4, 0, 0, 6],
    "stop": [[3, 5], [NO_TOKEN, NO_TOKEN], [4, NO_TOKEN], [3, NO_TOKEN]],
    "limit": [12, 9, 12, 12],
}
STRINGS = [["ab", "ff"], [], ["c"], ["dd", "j"]]


def chain_of(s):
    stop = np.where(np.asarray(s["stop"]) < 0, NO_TOKEN, s["stop"])
    return jaxgen.chain(
        jaxgen.repetition_penalty(np.asarray(s["penalty"], np.float32)),
        jaxgen.presence_penalty(np.asarray(s["presence"], np.float32)),
        jaxgen.frequency_penalty(np.asarray(s["frequency"], np.float32)),
        jaxgen.no_repeat_ngram(np.asarray(s["ngram"], np.int32)),
        jaxgen.min_new_tokens(np.asarray(s["least"], np.int32), stop.astype(np.int32)),
        jaxgen.temperature(np.asarray(s["temperature"], np.float32)),
        jaxgen.top_k(np.asarray(s["count"], np.int32)),
        jaxgen.top_p(np.asarray(s["mass"], np.float32)),
    )


@partial(jax.jit, static_argnames="length")
def made(sample, keys, first, stop, strings, limit, prompt, lengths, *, length=LENGTH):
    def step(tokens, cache):
        return TABLE[tokens], cache

    given = {"stop": stop, "strings": strings, "limit": limit, "prompt": prompt}
    return jaxgen.decode_detailed(
        *(step, (), first, keys, sample, length), top=2, lengths=lengths, **given
    )


PROMPT, LENGTHS = np.array([[1, 2, 0], [4, 0, 0], [9, 2, 3], [5, 5, 0]]), np.array([2, 1, 3, 2])


def run(rows, key):
    """These requests (numbers of the lists above) as one batch."""
    chosen = {name: [values[row] for row in rows] for name, values in SETTINGS.items()}
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(np.asarray(rows))
    lengths = LENGTHS[rows]
    return made(
        chain_of(chosen),
        keys,
        PROMPT[rows, lengths - 1].astype(np.int32),
        np.asarray(chosen["stop"], np.int32),
        jaxgen.stop_strings([STRINGS[row] for row in rows], PIECES),
        np.asarray(chosen["limit"], np.int32),
        PROMPT[rows].astype(np.int32),
        lengths.astype(np.int32),
    )


def test_mixed_settings_in_any_company_run_one_program_and_change_nothing():
    key = jax.random.key(3)
    together = run([0, 1, 2, 3], key)
    before = made._cache_size()
    for rows in ([3, 1, 0, 2], [2, 2, 2, 2], [0, 0, 1, 1]):
        found = run(rows, key)
        for place, row in enumerate(rows):
            for name in ("tokens", "num_generated", "reason", "logprobs"):
                mine, other = getattr(found, name)[place], getattr(together, name)[row]
                np.testing.assert_array_equal(mine, other, err_msg=f"{name} of {row} in {rows}")
    other = run([0, 1, 2, 3], jax.random.key(4))
    assert made._cache_size() == before
    assert other.tokens[1:].tolist() != together.tokens[1:].tolist()
    assert other.tokens[0].tolist() == together.tokens[0].tolist()  # temperature 0
    assert len(set(together.reason.tolist())) > 1


def never(tokens, cache):
    raise AssertionError("a step was traced")


def beams(*processors):
    chain, how = jaxgen.chain(*processors), jaxgen.beams(3)
    return jaxgen.beam_search(never, (), jnp.zeros(1, jnp.int32), None, chain, 5, how)


def drawn(*processors):
    config = jaxgen.ModelConfig(vocab_size=V, context=16, layers=1, d_model=8, heads=1)
    prompt = np.zeros((1, 2), np.int32)
    sample = jaxgen.chain(*processors)
    params = jaxgen.init(config, jax.random.key(1))
    return jaxgen.generate(params, config, prompt, jax.random.key(0), length=5, sample=sample)


TRIE = structure.trie([[1, 2, 3, 4, 5, 6]], 0, V, within=9)


@pytest.mark.parametrize(
    ("call", "processors", "text"),
    [
        (beams, [jaxgen.temperature(0.0)], "temperature=0.0 with beams=3"),
        (beams, [TRIE], "within=9 of an automaton exceeds length=5"),
        (drawn, [TRIE], "within=9 of an automaton exceeds length=5"),
        (drawn, [TRIE, TRIE], "within=9"),
        (drawn, [jaxgen.min_new_tokens(6, [0])], "min_new_tokens=6 exceeds length=5"),
        (drawn, [jaxgen.force_last(3, length=6)], "forced at place=5 never comes: length=5"),
        (
            drawn,
            [structure.trie([[1]], 0, V), structure.trie([[2]], 0, V)],
            "2 automata in one chain exclude each other",
        ),
    ],
)
def test_a_chain_that_contradicts_its_strategy_is_refused_before_it_is_compiled(
    call, processors, text
):
    with pytest.raises(errors.ConfigError, match=text) as caught:
        call(*processors)
    assert "\n" not in str(caught.value)


def test_a_penalty_with_nothing_to_choose_is_refused():
    with pytest.raises(errors.ConfigError, match=r"penalty=0\.6 has no effect with count=1"):
        jaxgen.contrastive_search(
            *(never, (), jnp.zeros(1, jnp.int32), jaxgen.chain(), 3),
            count=1,
            penalty=0.6,
            prompt_hidden=jnp.zeros((1, 1, 2)),
            prompt_hidden_lengths=jnp.ones(1, jnp.int32),
        )
