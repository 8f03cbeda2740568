"""Contrastive search against a plain loop that reads each candidate's whole text again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgen
from jaxgen import errors
from jaxgen.decoding.chain import greedy

V, D, LENGTH = 11, 6, 7
EMBED, TURN, OUT = (
    np.random.default_rng(n).normal(size=size).astype(np.float32)
    for n, size in enumerate([(V, D), (D, D), (D, V)])
)
PROMPT, LENGTHS = np.array([[3, 1, 4], [9, 2, 0]]), np.array([3, 2])


def recurrent(tokens, state):
    state = jnp.tanh(state @ TURN * 0.5 + jnp.asarray(EMBED)[tokens])
    return state @ OUT * 1.5, state, state


def states_of(ids):
    state, states = np.zeros(D, np.float32), []
    for token in ids:
        state = np.tanh(state @ TURN * 0.5 + EMBED[token])
        states.append(state)
    return np.stack(states)


def in_numpy(ids, count, alpha, stop):
    ids, new = list(ids), []
    while len(new) < LENGTH:
        if new and new[-1] == stop:
            new.append(stop)
            continue
        logits = states_of(ids)[-1] @ OUT * 1.5
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        scored = []
        for token in np.argsort(-probs)[:count]:
            states = states_of([*ids, int(token)])
            states /= np.linalg.norm(states, axis=1, keepdims=True)
            likeness = (states[:-1] @ states[-1]).max()
            scored.append(((1 - alpha) * probs[token] - alpha * likeness, int(token)))
        new.append(max(scored)[1])
        ids.append(new[-1])
    return new


@jax.jit
def search(penalty, stop):
    seen = np.zeros((2, 3, D), np.float32)
    for row, length in enumerate(LENGTHS):
        seen[row, : length - 1] = states_of(PROMPT[row, : length - 1])
    cache = jnp.stack([jnp.asarray(seen[row, length - 2]) for row, length in enumerate(LENGTHS)])
    first = jnp.asarray(PROMPT[np.arange(2), LENGTHS - 1])
    return jaxgen.contrastive_search(
        *(recurrent, cache, first, jaxgen.chain(), LENGTH),
        count=4,
        penalty=penalty,
        stop=stop,
        prompt_hidden=jnp.asarray(seen),
        prompt_hidden_lengths=LENGTHS - 1,
    )


def test_contrastive_search_matches_a_loop_that_reads_everything_again():
    for alphas, stop in (((0.6, 0.3), 99), ((0.0, 0.9), 5), ((0.2, 0.6), 7)):
        found = search(jnp.array(alphas), jnp.array([stop])).tokens
        for row, length in enumerate(LENGTHS):
            wanted = in_numpy(PROMPT[row, :length], 4, alphas[row], stop)
            assert found[row].tolist() == wanted


def test_without_penalty_it_is_greedy_and_what_is_out_of_range_is_refused():
    cache = jnp.asarray(np.stack([states_of(PROMPT[0, :2])[-1], states_of(PROMPT[1, :1])[-1]]))
    first = jnp.asarray(PROMPT[np.arange(2), LENGTHS - 1])
    plain = lambda tokens, state: recurrent(tokens, state)[::2]  # noqa: E731
    wanted, _ = jaxgen.decode(plain, cache, first, jax.random.key(0), greedy(), LENGTH)
    assert search(jnp.zeros(2), jnp.array([99])).tokens.tolist() == wanted.tolist()
    with pytest.raises(errors.ConfigError, match=r"penalty=1\.5 must be at least 0 and at most 1"):
        jaxgen.contrastive_search(
            *(recurrent, cache, first, jaxgen.chain(), 3),
            count=4,
            penalty=1.5,
            prompt_hidden=cache[:, None],
            prompt_hidden_lengths=LENGTHS,
        )
