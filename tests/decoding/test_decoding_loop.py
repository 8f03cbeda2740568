"""The compiled loop against a plain Python loop, for a step that is no neural network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import chain, decode, temperature, top_k
from jaxgen.decoding.chain import greedy
from jaxgen.decoding.loop import NOT_FINITE, request_keys

V = 11
TABLE = jax.random.normal(jax.random.key(7), (V, V)) * 2


def bigram(tokens, cache):
    """A table of next-token logits; the cache counts the steps of each row."""
    return TABLE[tokens], cache + 1


def in_python(step, cache, first, key, sample, length, stop=()):
    """What decode does, one token of one request at a time."""
    keys = [jax.random.fold_in(key, row) for row in range(len(first))]
    sample, rows = jax.jit(sample), []
    for row, token in enumerate(first.tolist()):
        made, state = [], cache[row : row + 1]
        while len(made) < length:
            if made and made[-1] in stop:
                made.append(made[-1])
                continue
            logits, state = step(jnp.array([token]), state)
            draw = jax.random.fold_in(keys[row], len(made))
            token = int(sample(logits, draw[None])[0])
            made.append(token)
        rows.append(made)
    return rows


@pytest.mark.parametrize("stop", [(), (3,), (3, 5)])
@pytest.mark.parametrize("sample", [greedy(), chain(temperature(0.9), top_k(6))])
def test_scan_matches_loop(sample, stop):
    first, key = jnp.array([0, 4, 9, 2]), jax.random.key(3)
    cache = jnp.zeros(4, jnp.int32)
    wanted = in_python(bigram, cache, first, key, sample, 12, stop)
    ids = jnp.array(stop, jnp.int32) if stop else None
    found, _ = jax.jit(decode, static_argnums=(0, 5))(
        bigram, cache, first, key, sample, 12, stop=ids
    )
    assert found.tolist() == wanted


def test_a_request_has_its_key_whatever_the_batch():
    key = jax.random.key(5)
    few, many = (jax.random.key_data(request_keys(key, count)) for count in (2, 7))
    assert (few == many[:2]).all() and len(np.unique(many, axis=0)) == 7


def test_the_loop_ends_when_every_row_has_stopped():
    def always_three(tokens, cache):
        return jax.nn.one_hot(jnp.full_like(tokens, 3), V), cache + 1

    first = jnp.array([0, 1])
    tokens, steps = decode(
        always_three,
        jnp.zeros((), jnp.int32),
        first,
        jax.random.key(0),
        greedy(),
        50,
        stop=jnp.array([3]),
    )
    assert int(steps) == 1 and (tokens == 3).all()


def test_a_request_does_not_depend_on_its_neighbours():
    sample, key = chain(temperature(1.0)), jax.random.key(5)
    first = jnp.array([0, 4, 9])
    keys = request_keys(key, 3)
    together, _ = decode(bigram, jnp.zeros(3), first, key, sample, 20)
    for row in range(3):
        alone, _ = decode(
            bigram, jnp.zeros(1), first[row : row + 1], keys[row : row + 1], sample, 20
        )
        assert alone[0].tolist() == together[row].tolist()
    assert len({tuple(row) for row in together.tolist()}) == 3


def test_chunks_join_to_the_whole():
    sample, key, first = chain(temperature(1.0)), jax.random.key(5), jnp.array([0, 4, 9])
    stop = jnp.array([3])
    whole, _ = decode(bigram, jnp.zeros(3), first, key, sample, 24, stop=stop)
    parts, cache = [], jnp.zeros(3)
    for start in range(0, 24, 8):
        tokens, cache = decode(
            bigram, cache, first, key, sample, 8, stop=stop, start=jnp.array(start)
        )
        parts.append(tokens)
        first = tokens[:, -1]
    assert jnp.concatenate(parts, 1).tolist() == whole.tolist()
    assert (whole == 3).any()


@pytest.mark.parametrize("poison", [jnp.nan, -jnp.inf])
def test_rubbish_logits_end_their_own_request_only(poison):
    def sick(tokens, cache):
        logits = TABLE[tokens]
        bad = (cache == 2) & (jnp.arange(2) == 1)
        return jnp.where(bad[:, None], poison, logits), cache + 1

    def well(tokens, cache):
        return TABLE[tokens], cache + 1

    arguments = (jnp.zeros((), jnp.int32), jnp.array([0, 4]), jax.random.key(0), greedy(), 6)
    found, wanted = decode(sick, *arguments)[0], decode(well, *arguments)[0]
    assert found[0].tolist() == wanted[0].tolist()
    assert found[1, :2].tolist() == wanted[1, :2].tolist()
    assert (found[1, 2:] == NOT_FINITE).all()


def test_one_logit_of_nan_is_enough_to_refuse_the_row():
    def step(tokens, cache):
        return TABLE[tokens].at[:, 0].set(jnp.nan), cache

    tokens, _ = decode(step, 0, jnp.array([1]), jax.random.key(0), greedy(), 3)
    assert tokens.tolist() == [[NOT_FINITE] * 3]


def test_draws_follow_the_step_s_own_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))

    def step(tokens, cache):
        return jnp.broadcast_to(logits, (tokens.shape[0], 3)), cache

    first = jnp.zeros(500, jnp.int32)
    tokens, _ = decode(step, 0, first, jax.random.key(0), chain(), 40)
    shares = np.bincount(np.asarray(tokens).ravel(), minlength=3) / tokens.size
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.015)


def test_a_key_of_the_old_style_draws_as_the_new_one():
    arguments = (bigram, jnp.zeros(2), jnp.array([0, 4]))
    old, _ = decode(*arguments, jax.random.PRNGKey(2), chain(), 8)
    new, _ = decode(*arguments, jax.random.key(2), chain(), 8)
    assert old.tolist() == new.tolist()
