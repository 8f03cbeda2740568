"""The smallest and the largest: one id and 256k, one row and 257, nothing left to draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxgen
from jaxgen.decoding.chain import NOT_FINITE
from jaxgen.decoding.history import History
from jaxgen.decoding.stop import Reason

V, STOP = 9, 4
TABLE = jax.random.normal(jax.random.key(1), (V, V)) * 2


def bigram(tokens, cache):
    return TABLE[tokens], cache


@partial(jax.jit, static_argnames="length")
def made(sample, first, keys, stop=None, *, length):
    return jaxgen.decode_detailed(bigram, (), first, keys, sample, length, top=1, stop=stop)


def test_a_vocabulary_of_one_has_one_text():
    def step(tokens, cache):
        return jnp.zeros((tokens.shape[0], 1)), cache

    first, prompt = jnp.zeros(2, jnp.int32), jnp.zeros((2, 3), jnp.int32)
    chain = jaxgen.chain(
        *(jaxgen.repetition_penalty(1.3), jaxgen.temperature(0.7), jaxgen.top_k(5)),
        *(jaxgen.top_p(0.3), jaxgen.min_p(0.5), jaxgen.typical(0.2), jaxgen.top_n_sigma(1.0)),
    )

    @jax.jit
    def all_(key):
        drawn, _ = jaxgen.decode(step, (), first, key, chain, 4, prompt=prompt)
        beams = jaxgen.beam_search(
            *(step, (), first, None, jaxgen.chain(), 4, jaxgen.beams(2)), num_return=2
        )
        read, draft = jaxgen.multi_token_step(step), jaxgen.lookup(2)
        guessed = jaxgen.speculate(read, (), first, key, chain, 4, draft, prompt=prompt)
        return drawn, beams, guessed.tokens

    drawn, beams, guessed = all_(jax.random.key(0))
    assert not drawn.any() and not guessed.any() and not beams.tokens[:, 0].any()
    # A second text there is not: its beam is dead.
    assert (beams.scores[:, 0] == 0).all() and jnp.isneginf(beams.scores[:, 1]).all()


def test_256_thousand_ids_are_cut_to_the_smallest_set_that_reaches_p():
    size, mass = 262_144, 0.7
    logits = jax.random.normal(jax.random.key(2), (2, size)) * 3
    chain = jaxgen.chain(
        *(jaxgen.repetition_penalty(1.2), jaxgen.temperature(0.8), jaxgen.top_k(100_000)),
        jaxgen.top_p(mass),
    )
    tokens = jnp.array([[5, size - 1], [7, 7]])
    history = History(jnp.zeros(2, jnp.int32), tokens, jnp.array([2, 2]))
    found = jax.jit(chain.process)(logits, history)
    drawn = jax.jit(chain)(logits, jax.random.split(jax.random.key(0), 2), history)
    for row in range(2):
        x = np.asarray(logits[row], np.float64)
        x[tokens[row]] = np.where(x[tokens[row]] < 0, x[tokens[row]] * 1.2, x[tokens[row]] / 1.2)
        x = x / 0.8
        best = np.sort(x)[::-1][:100_000]
        probs = np.exp(best - best[0]) / np.exp(best - best[0]).sum()
        count = int(np.isfinite(found[row]).sum())
        total = np.cumsum(probs)
        # float32 sums of 256 thousand may differ from these by one of the last.
        assert abs(count - (np.searchsorted(total, mass) + 1)) <= 2
        assert np.asarray(found[row]).argmax() == x.argmax() and np.isfinite(found[row, drawn[row]])
    pieces = [b"%d " % token for token in range(size)]
    strings = jaxgen.stop_strings(["99 12"], pieces)
    state = strings.advance(strings.states(2), jnp.array([1299, 99]))
    state = strings.advance(state, jnp.array([size - 1, 120_000]))
    assert strings.table.size < 10_000 and (state == 0).tolist() == [False, True]


def test_one_row_of_257_is_as_alone_and_one_token_is_the_first_of_six():
    sample = jaxgen.chain(jaxgen.temperature(1.0))
    first = jnp.arange(257) % V
    keys = jax.random.split(jax.random.key(0), 257)
    stop = jnp.array([STOP])
    together = made(sample, first, keys, stop, length=6)
    one = made(sample, first, keys, stop, length=1)
    assert one.tokens[:, 0].tolist() == together.tokens[:, 0].tolist()
    assert (one.num_generated == 1).all()
    for row in (0, 100, 256):
        mine = slice(row, row + 1)
        alone = made(sample, first[mine], keys[mine], stop, length=6)
        for name in ("tokens", "num_generated", "reason", "logprobs", "top_ids"):
            assert getattr(alone, name)[0].tolist() == getattr(together, name)[row].tolist()
    assert together.num_generated.max() == 6
    # An end token that comes first is all there is of its text.
    ended = together.tokens[:, 0] == STOP
    assert ended.any() and (together.num_generated[ended] == 1).all()
    assert (together.reason[ended] == Reason.STOP).all()
    assert (together.tokens[ended] == STOP).all()


def test_where_every_token_is_banned_the_row_says_so_and_ends():
    banned = jaxgen.suppress([[*range(V)], [*range(1, V)]])
    keys = jax.random.split(jax.random.key(0), 2)
    found = made(jaxgen.chain(banned), jnp.array([1, 2]), keys, length=6)
    assert found.reason.tolist() == [Reason.BANNED, Reason.LENGTH]
    assert found.num_generated.tolist() == [0, 6] and (found.tokens[0] == NOT_FINITE).all()
    assert (found.tokens[1] == 0).all()


def test_contrastive_search_ends_a_row_of_nan_and_no_other():
    states = jax.random.normal(jax.random.key(3), (V, 4))

    @jax.jit
    def search(poison):
        def step(tokens, cache):
            logits = jnp.where((tokens == 3)[:, None], poison, TABLE[tokens])
            return logits, states[tokens], cache

        return jaxgen.contrastive_search(
            *(step, jnp.zeros(3), jnp.array([0, 3, 5]), jaxgen.chain(), 5),
            count=2,
            penalty=0.4,
            prompt_hidden=jnp.zeros((3, 1, 4)),
            prompt_hidden_lengths=jnp.zeros(3, jnp.int32),
        )

    found = search(jnp.nan).tokens
    assert (found[1] == NOT_FINITE).all()
    for row in (0, 2):
        kept = found[row].tolist()
        ends = kept.index(3) + 1 if 3 in kept else 5
        assert NOT_FINITE not in kept[:ends] and set(kept[ends:]) <= {NOT_FINITE}
