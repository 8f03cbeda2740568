"""Speculative decoding: greedy is the same, draws have the target's distribution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.chain import NOT_FINITE, greedy
from jaxgen.decoding.processors import structure
from jaxgen.decoding.stop import Reason
from jaxgen.text.generate import prefill

V, LENGTH = 4, 3
TABLE = jax.random.normal(jax.random.key(1), (V, V, V)) * 1.5
WEAK = jax.random.normal(jax.random.key(2), (V, V))


def trigram(tokens, before):
    return TABLE[before, tokens], tokens


def bigram(tokens, cache):
    return WEAK[tokens], cache


def drafts(name, batch, count=3):
    if name == "lookup":
        return jaxgen.lookup(count)
    cache = () if name == "bigram" else jnp.zeros(batch, jnp.int32)
    step = bigram if name == "bigram" else trigram
    return jaxgen.draft_model(step, cache, jaxgen.chain(jaxgen.temperature(1.3)), count)


@partial(jax.jit, static_argnames=("name", "length"))
def speculate(name, sample, first, key, stop=None, limit=None, *, length=LENGTH):
    draft = drafts(name, first.shape[0])
    prompt = jnp.stack([jnp.zeros_like(first), first], 1)
    read, cache = jaxgen.multi_token_step(trigram), jnp.zeros_like(first)
    given = {"prompt": prompt, "stop": stop, "limit": limit}
    return jaxgen.speculate(read, cache, first, key, sample, length, draft, **given)


@pytest.mark.parametrize("name", ["bigram", "lookup"])
def test_greedy_speculation_is_token_for_token_greedy(name):
    first, stop = jnp.arange(V), jnp.array([1])
    sample = jaxgen.chain(jaxgen.no_repeat_ngram(3), *greedy().processors)
    prompt = jnp.stack([jnp.zeros_like(first), first], 1)
    for limit in (jnp.full(V, 20), jnp.array([5, 1, 20, 7])):
        given = {"stop": stop, "limit": limit}
        wanted, _ = jaxgen.decode(
            trigram,
            jnp.zeros_like(first),
            first,
            jax.random.key(0),
            sample,
            20,
            prompt=prompt,
            **given,
        )
        found = speculate(name, sample, first, jax.random.key(3), stop, limit, length=20)
        for row in range(V):
            made = int(found.num_generated[row])
            assert found.tokens[row, :made].tolist() == wanted[row, :made].tolist()
            assert found.tokens[row].tolist() == wanted[row].tolist() or made < 20


@pytest.mark.parametrize("name", ["bigram", "itself", "lookup"])
def test_speculative_draws_have_the_target_s_distribution(name):
    draws = 10_000
    sample = jaxgen.chain(jaxgen.temperature(0.9), jaxgen.top_k(3))
    probs = jax.nn.softmax(sample.process(TABLE.reshape(-1, V)), axis=-1).reshape(V, V, V)
    a, b = probs[0, 2], probs[2]
    wanted = np.asarray(a[:, None, None] * b[:, :, None] * probs, np.float64).ravel()
    found = speculate(name, sample, jnp.full(draws, 2), jax.random.key(5))
    codes = np.asarray(found.tokens) @ np.array([V * V, V, 1])
    counts = np.bincount(codes, minlength=V**3)
    assert counts[wanted == 0].sum() == 0
    real = wanted > 0
    statistic = ((counts - draws * wanted)[real] ** 2 / (draws * wanted[real])).sum()
    degrees = real.sum() - 1
    assert statistic < degrees + 4.5 * np.sqrt(2 * degrees)
    assert 0 < int(found.accepted.sum()) < int(found.guessed.sum())


def test_reading_ahead_gives_the_draws_of_decoding_in_fewer_calls():
    first, cache, key = jnp.arange(V), jnp.zeros(V, jnp.int32), jax.random.key(7)
    prompt, limit = jnp.stack([jnp.zeros_like(first), first], 1), jnp.array([20, 7, 20, 20])
    sample = jaxgen.chain(jaxgen.repetition_penalty(0.6), jaxgen.temperature(0.7))
    args, about = (cache, first, key, sample, 20), {"top": 2, "prompt": prompt, "limit": limit}
    wanted = jaxgen.decode_detailed(trigram, *args, **about, stop=[1])
    read, draft = jaxgen.multi_token_step(trigram), jaxgen.lookup(3)
    found = jaxgen.decode_detailed(read, *args, **about, stop=[1], draft=draft)
    assert found.num_generated.tolist() == wanted.num_generated.tolist()
    assert found.reason.tolist() == wanted.reason.tolist() and found.steps < wanted.steps
    for row, made in enumerate(wanted.num_generated.tolist()):
        assert found.tokens[row, :made].tolist() == wanted.tokens[row, :made].tolist()
        assert found.top_ids[row, :made].tolist() == wanted.top_ids[row, :made].tolist()
        np.testing.assert_allclose(found.logprobs[row, :made], wanted.logprobs[row, :made], 1e-5)
    short = jaxgen.decode_detailed(read, *args, **about, draft=draft, calls=2)
    assert short.steps == 2 and 2 <= short.num_generated.min() <= short.num_generated.max() <= 8
    with pytest.raises(errors.ConfigError, match="cache has 4 slots"):
        small = jaxgen.empty_cache(
            jaxgen.ModelConfig(vocab_size=V, context=4, layers=1, d_model=4, heads=1), V, 4
        )
        jaxgen.decode_detailed(read, small, *args[1:4], 1, **about, draft=draft)


def test_a_structure_is_kept_while_guesses_come_and_go():
    trie = structure.trie([[0, 0, 2, 0], [3, 3, 0], [2]], 1, V)
    first, stop = jnp.arange(V), jnp.array([1])
    for value in (0.0, 1.0):
        sample = jaxgen.chain(trie, jaxgen.temperature(value))
        found = speculate("lookup", sample, first, jax.random.key(3), stop, length=20)
        for tokens, made in zip(found.tokens.tolist(), found.num_generated.tolist(), strict=True):
            assert tokens[:made] in ([0, 0, 2, 0, 1], [3, 3, 0, 1], [2, 1])
        assert (found.reason == Reason.STOP).all()
    assert found.accepted.sum() > 0


def test_a_request_speculates_alone_as_in_a_batch():
    sample, key = jaxgen.chain(jaxgen.temperature(1.0)), jax.random.split(jax.random.key(0), 4)
    together = speculate("bigram", sample, jnp.arange(4), key, length=LENGTH)
    for row in range(4):
        alone = speculate("bigram", sample, jnp.array([row]), key[row : row + 1], length=LENGTH)
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()


def test_a_transformer_read_several_tokens_at_a_time_is_greedy_too():
    config = jaxgen.ModelConfig(
        vocab_size=11, context=40, layers=1, d_model=16, heads=2, init_std=0.6, positions="rope"
    )
    params = jax.jit(jaxgen.init, static_argnums=0)(config, jax.random.key(0))
    prompt, lengths = jnp.array([[3, 1, 4, 1], [9, 2, 0, 0]]), jnp.array([4, 2])

    @jax.jit
    def both(params):
        def read(tokens, cache):
            out = jaxgen.apply(params, config, tokens, cache=cache)
            return out.logits, out.cache

        first, cache = prefill(params, config, prompt, lengths, 40)
        found = jaxgen.speculate(
            *(read, cache, first, jax.random.key(0), greedy(), 20, jaxgen.lookup(4)),
            prompt=prompt,
            lengths=lengths,
        )
        return found, jaxgen.generate(
            params, config, prompt, jax.random.key(0), length=20, lengths=lengths
        )

    found, wanted = both(params)
    assert found.tokens.tolist() == wanted.tolist()
    assert int(found.steps) < 20 and (found.accepted > 0).all()


def test_logits_that_are_not_finite_end_the_request():
    table = TABLE.at[0, 2].set(jnp.nan)

    def sick(tokens, before):
        return table[before, tokens], tokens

    found = jaxgen.speculate(
        *(
            jaxgen.multi_token_step(sick),
            jnp.zeros(1, jnp.int32),
            jnp.array([2]),
            jax.random.key(0),
        ),
        *(jaxgen.chain(), 4, jaxgen.lookup(2)),
        prompt=jnp.array([[0, 2]]),
    )
    assert found.tokens.tolist() == [[NOT_FINITE] * 4] and found.reason == Reason.NOT_FINITE


def test_a_draft_that_looks_back_is_refused():
    with pytest.raises(errors.ConfigError, match="a draft's chain reads logits alone"):
        jaxgen.draft_model(bigram, (), jaxgen.chain(jaxgen.repetition_penalty(1.2)), 3)
