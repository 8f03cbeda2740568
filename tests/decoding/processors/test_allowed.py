"""A user's function of the tokens so far decides which may follow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.processors import structure

V, STOP = 7, 6
TABLE = jax.random.normal(jax.random.key(3), (V, V)) * 2
SEQUENCES = [[1, 2, 3], [1, 4], [5]]


def rising(tokens, length, ends):
    """Ids above the last one and, once an odd one is there, the stop."""
    slots = jnp.arange(tokens.shape[0])
    odd = jnp.any((slots < length) & (slots >= 2) & (tokens % 2 == 1))
    ids = jnp.arange(V)
    return jnp.where(ids == STOP, odd, ids > tokens[length - 1]) & (ids >= ends[0])


@partial(jax.jit, static_argnames="length")
def drawn(sample, first, key, prompt, lengths, *, length):
    def step(tokens, cache):
        return TABLE[tokens], cache

    given = {"stop": jnp.array([STOP]), "prompt": prompt, "lengths": lengths}
    return jaxgen.decode_detailed(step, (), first, key, sample, length, top=0, **given)


def run(sample, rows=64, seed=0, length=5):
    prompt = np.tile([[0, 0, 0]], (rows, 1))
    first, key = jnp.zeros(rows, jnp.int32), jax.random.key(seed)
    return drawn(sample, first, key, prompt, np.full(rows, 2), length=length)


def test_only_what_the_function_allows_is_drawn_and_its_data_may_change():
    found = run(jaxgen.chain(jaxgen.allowed_tokens(rising, jnp.array([0]))))
    before = drawn._cache_size()
    other = run(jaxgen.chain(jaxgen.allowed_tokens(rising, jnp.array([2]))))
    assert drawn._cache_size() == before
    for one, least in ((found, 1), (other, 2)):
        for text, made in zip(one.tokens.tolist(), one.num_generated.tolist(), strict=True):
            new = text[:made]
            body = new[:-1] if new[-1] == STOP else new
            assert body == sorted(set(body)) and (not body or body[0] >= least)
            assert new[-1] != STOP or any(token % 2 for token in body)
    assert len({tuple(text) for text in found.tokens.tolist()}) > 6


def test_the_function_of_a_trie_draws_as_the_trie_does():
    table = np.full((3, 3), -1)
    for row, sequence in enumerate(SEQUENCES):
        table[row, : len(sequence)] = sequence

    def prefix(tokens, length, table):
        new = jax.lax.dynamic_slice(jnp.pad(tokens, (0, 4)), (2,), (4,))
        made = length - 2
        same = (table == new[:3]) | (jnp.arange(3) >= made)
        whole = jnp.all(same, axis=1)
        after = jnp.take_along_axis(
            jnp.pad(table, ((0, 0), (0, 1)), constant_values=-1),
            jnp.broadcast_to(jnp.minimum(made, 3), (3, 1)),
            axis=1,
        )[:, 0]
        after = jnp.where(after < 0, STOP, after)
        return jnp.any(whole[:, None] & (jnp.arange(V) == after[:, None]), axis=0)

    trie = structure.trie(SEQUENCES, STOP, V)
    wanted = run(jaxgen.chain(trie), length=4)
    found = run(jaxgen.chain(jaxgen.allowed_tokens(prefix, jnp.asarray(table))), length=4)
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.reason.tolist() == wanted.reason.tolist()


def test_a_function_that_gives_no_mask_is_refused():
    with pytest.raises(errors.ConfigError, match=r"gave int32\[7\]; it must give a bool"):
        run(jaxgen.chain(jaxgen.allowed_tokens(lambda tokens, length: jnp.arange(V))), rows=2)
