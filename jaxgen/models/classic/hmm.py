"""Hidden Markov models over token ids: all of it scans in log space.

Expected counts are the gradient of the log likelihood by the log parameters (Eisner 2016), so
Baum-Welch needs the forward recursion alone. Params: initial [K], transition [K, K] (from, to),
emission [K, V], natural logarithms of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxgen.models.classic.prompt import consume

Params = dict[str, Array]


def init(states: int, vocab_size: int, key: PRNGKeyArray) -> Params:
    """Return random params near uniform, which Baum-Welch can tell apart."""
    shapes = {
        "initial": (states,),
        "transition": (states, states),
        "emission": (states, vocab_size),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.nn.log_softmax(jax.random.normal(k, shape))
        for (name, shape), k in zip(shapes.items(), keys, strict=True)
    }


def likelihood(
    params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B"]:
    """Return the log likelihood of each row's first `lengths` (1 or more) tokens."""
    return _forward(params, _scores(params, tokens), lengths)


def posterior(
    params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B T K"]:
    """Return the probability of each state at each place, given the whole row; 0 beyond it."""
    found = jax.grad(lambda scores: _forward(params, scores, lengths).sum())
    return found(_scores(params, tokens)).transpose(1, 0, 2)


def viterbi(
    params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> tuple[Int[Array, "B T"], Float[Array, "B"]]:
    """Return (the likeliest states, their log probability with the tokens); beyond a row, -1."""
    scores = _scores(params, tokens)
    real = _real(tokens, lengths)

    def forth(best, inputs):
        score, real = inputs
        ways = best[:, :, None] + params["transition"]
        new = ways.max(axis=1) + score
        back = jnp.where(real[:, None], ways.argmax(axis=1), jnp.arange(best.shape[1]))
        return jnp.where(real[:, None], new, best), back

    best, back = lax.scan(forth, params["initial"] + scores[0], (scores[1:], real[1:]))

    def down(state, back):
        before = jnp.take_along_axis(back, state[:, None], axis=1)[:, 0]
        return before, before

    last = best.argmax(axis=1)
    _, path = lax.scan(down, last, back, reverse=True)
    path = jnp.concatenate([path, last[None]]).T
    return jnp.where(real.T, path, -1), best.max(axis=1)


def counts(
    params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> tuple[Params, Float[Array, ""]]:
    """Return (expected counts, log likelihood) of rows; both add up over batches."""
    total, found = jax.value_and_grad(lambda p: likelihood(p, tokens, lengths).sum())(params)
    return found, total


def maximized(counted: Params, prior: float) -> Params:
    """Return the params that the expected counts make likeliest, each count raised by `prior`."""

    def normal(count: Array) -> Array:
        raised = jnp.maximum(count, 0) + prior
        return jnp.log(raised) - jnp.log(raised.sum(axis=-1, keepdims=True))

    return {name: normal(count) for name, count in counted.items()}


def train(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    rounds: int,
    prior: float,
    batch: int,
) -> tuple[Params, list[float]]:
    """Return (params, log likelihood before each round) after so many rounds of Baum-Welch.

    prior: pseudo-count of every event; with 0 the likelihood never falls, with more the unseen
    keeps some probability. batch: rows whose expected counts are found at once.
    """
    history = []
    for _ in range(rounds):
        counted, total = None, 0.0
        for begin in range(0, len(tokens), batch):
            part = slice(begin, begin + batch)
            more, found = _counts(params, tokens[part], lengths[part])
            counted = more if counted is None else jax.tree.map(jnp.add, counted, more)
            total += float(found)
        assert counted is not None
        params = maximized(counted, prior)
        history.append(total)
    return params, history


_counts = jax.jit(counts)


def start(params: Params, batch: int) -> Float[Array, "B K"]:
    """Return the decoding cache before the first token: log probabilities of the state it has."""
    return jnp.broadcast_to(params["initial"], (batch, len(params["initial"])))


def step(params: Params) -> Callable[..., tuple[Array, Array]]:
    """Return the model as a decoding step: (tokens [B], cache) -> (log probs [B, V], cache)."""

    def run(tokens: Any, belief: Array) -> tuple[Array, Array]:
        belief = read(params, tokens, belief)
        return _mixed(belief, params["emission"]), belief

    return run


def read(
    params: Params, tokens: Int[Array, "B"], belief: Float[Array, "B K"]
) -> Float[Array, "B K"]:
    """Return the cache after one more token of each row."""
    belief = jax.nn.log_softmax(belief + params["emission"].T[tokens])
    return _mixed(belief, params["transition"])


def prefill(
    params: Params, prompt: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B K"]]:
    """Return (first, cache): all of each prompt but its last token read, and that last token."""
    return consume(partial(read, params), start(params, prompt.shape[0]), prompt, lengths)


def _scores(params: Params, tokens: Array) -> Float[Array, "T B K"]:
    return params["emission"].T[tokens].transpose(1, 0, 2)


def _real(tokens: Array, lengths: Array) -> Bool[Array, "T B"]:
    return jnp.arange(tokens.shape[1])[:, None] < lengths


def _forward(params: Params, scores: Float[Array, "T B K"], lengths: Array) -> Float[Array, "B"]:
    real = jnp.arange(scores.shape[0])[:, None] < lengths

    def forth(alpha, inputs):
        score, real = inputs
        new = _mixed(alpha, params["transition"]) + score
        return jnp.where(real[:, None], new, alpha), None

    alpha, _ = lax.scan(forth, params["initial"] + scores[0], (scores[1:], real[1:]))
    return jax.nn.logsumexp(alpha, axis=-1)


def _mixed(weights: Float[Array, "B K"], table: Float[Array, "K N"]) -> Float[Array, "B N"]:
    """Return logsumexp over k of weights[b, k] + table[k, n], as one matrix product."""
    top = lax.stop_gradient(weights.max(axis=1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    # A product of exponentials: what underflows lies 1e-38 below the largest and adds nothing.
    mixed = jnp.matmul(jnp.exp(weights - top), jnp.exp(table), precision="highest")
    return jnp.log(jnp.maximum(mixed, 1e-37)) + top
