"""Hidden Markov models over token ids, as scans in log space.

Expected counts are the gradient of the log likelihood by the log parameters (Eisner 2016), so
Baum-Welch needs the forward recursion alone. Params: initial [K], transition [K, K] (from, to),
emission [K, V], natural logarithms of probabilities, -inf for zero.

A text of probability zero has log likelihood -inf, no states and no expected counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic.documents import check_rows
from jaxgen.models.classic.prompt import consume

Params = dict[str, Array]
Ids = Int[Array | np.ndarray, "B T"]
Lengths = Int[Array | np.ndarray, "B"]
LITTLE = 1e-30  # sums of exponentials above this have lost nothing to underflow


def init(states: int, vocab_size: int, key: PRNGKeyArray) -> Params:
    """Return random params near uniform; equal states would stay equal under Baum-Welch."""
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


def likelihood(params: Params, tokens: Ids, lengths: Lengths) -> Float[Array, "B"]:
    """Return the log likelihood of each row's first `lengths` (1 or more) tokens."""
    check_rows(tokens, lengths, _vocab_size(params))
    return _forward(params, _scores(params, tokens), lengths)


def posterior(params: Params, tokens: Ids, lengths: Lengths) -> Float[Array, "B T K"]:
    """Return the probability of each state at each position, given the row; 0 beyond its length.

    All zeros for a row of probability zero.
    """
    check_rows(tokens, lengths, _vocab_size(params))
    gradient = jax.grad(lambda scores: _forward(params, scores, lengths).sum())
    return gradient(_scores(params, tokens)).transpose(1, 0, 2)


def viterbi(
    params: Params, tokens: Ids, lengths: Lengths
) -> tuple[Int[Array, "B T"], Float[Array, "B"]]:
    """Return (the likeliest states, -1 beyond a row; their joint log probability with the tokens).

    A row of probability zero has log probability -inf and -1 for all its states.
    """
    check_rows(tokens, lengths, _vocab_size(params))
    return _viterbi(params, tokens, lengths)


@jax.jit
def _viterbi(params: Params, tokens: Ids, lengths: Lengths) -> tuple[Array, Array]:
    scores = _scores(params, tokens)
    real = _real(tokens, lengths)

    def forward(best, inputs):
        score, real = inputs
        ways = best[:, :, None] + params["transition"]
        new = ways.max(axis=1) + score
        back = jnp.where(real[:, None], ways.argmax(axis=1), jnp.arange(best.shape[1]))
        return jnp.where(real[:, None], new, best), back

    best, back = lax.scan(forward, params["initial"] + scores[0], (scores[1:], real[1:]))

    def backtrack(state, back):
        before = jnp.take_along_axis(back, state[:, None], axis=1)[:, 0]
        return before, before

    last = best.argmax(axis=1)
    _, path = lax.scan(backtrack, last, back, reverse=True)
    path = jnp.concatenate([path, last[None]]).T
    top = best.max(axis=1)
    return jnp.where(real.T & (top > -jnp.inf)[:, None], path, -1), top


def counts(params: Params, tokens: Ids, lengths: Lengths) -> tuple[Params, Float[Array, ""]]:
    """Return (expected counts, log likelihood) of rows; both add up over batches."""
    total, expected = jax.value_and_grad(lambda p: likelihood(p, tokens, lengths).sum())(params)
    return expected, total


def m_step(counted: Params, prior: float) -> Params:
    """Return the most likely params given expected counts, each count raised by `prior`.

    A state with no counts gets a uniform row.
    """

    def normal(count: Array) -> Array:
        raised = jnp.maximum(count, 0) + prior
        total = raised.sum(axis=-1, keepdims=True)
        return jnp.where(
            total > 0,
            jnp.log(raised) - jnp.log(jnp.where(total > 0, total, 1.0)),
            -jnp.log(count.shape[-1]),
        )

    return {name: normal(count) for name, count in counted.items()}


def train(
    params: Params,
    tokens: Ids,
    lengths: Lengths,
    *,
    rounds: int,
    prior: float,
    batch: int,
) -> tuple[Params, list[float]]:
    """Return (params, log likelihood before each round) after `rounds` of Baum-Welch.

    prior: pseudo-count of every event; with 0 the likelihood never falls, above 0 unseen events
    keep some probability. batch: rows per expected-counts step. Raises DataError for no rows, ids
    or lengths out of range, or a row of probability zero; ConfigError for a setting out of range.
    """
    for name, value, least in (("rounds", rounds, 1), ("batch", batch, 1), ("prior", prior, 0)):
        if not least <= value < float("inf"):
            raise ConfigError(f"{name}={value} must be at least {least}")
    if not len(tokens):
        raise DataError("there are no rows to learn from; give some text")
    check_rows(tokens, lengths, _vocab_size(params))
    history = []
    for _ in range(rounds):
        counted, total = None, 0.0
        for begin in range(0, len(tokens), batch):
            part = slice(begin, begin + batch)
            more, log_likelihood = _counts(params, tokens[part], lengths[part])
            counted = more if counted is None else jax.tree.map(jnp.add, counted, more)
            total += float(log_likelihood)
        assert counted is not None
        if not np.isfinite(total):
            raise _impossible(params, tokens, lengths)
        params = m_step(counted, prior)
        history.append(total)
    return params, history


def _impossible(params: Params, tokens: Any, lengths: Any) -> DataError:
    logs = np.asarray(likelihood(params, tokens, lengths))
    row = int(np.flatnonzero(~np.isfinite(logs))[0])
    return DataError(
        f"row {row} of tokens has log likelihood {logs[row]}, so it has no expected counts; leave "
        f"it out, or begin with params that say every token"
    )


_counts = jax.jit(counts)


def start(params: Params, batch: int) -> Float[Array, "B K"]:
    """Return the decoding cache before the first token: log probabilities of each state."""
    return jnp.broadcast_to(params["initial"], (batch, len(params["initial"])))


def step(params: Params) -> Callable[..., tuple[Array, Array]]:
    """Return the model as a decoding step: (tokens [B], cache) -> (log probs [B, V], cache).

    After tokens of probability zero all logits are -inf, and decoding stops there.
    """

    def run(tokens: Any, belief: Array) -> tuple[Array, Array]:
        belief = read(params, tokens, belief)
        return _log_matmul(belief, params["emission"]), belief

    return run


def read(
    params: Params, tokens: Int[Array, "B"], belief: Float[Array, "B K"]
) -> Float[Array, "B K"]:
    """Return the cache after one more token of each row."""
    joint = belief + params["emission"].T[tokens]
    total = jax.nn.logsumexp(joint, axis=-1, keepdims=True)
    belief = jnp.where(total > -jnp.inf, joint - total, -jnp.inf)
    return _log_matmul(belief, params["transition"])


def prefill(
    params: Params, prompt: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> tuple[Int[Array, "B"], Float[Array, "B K"]]:
    """Return (first, cache): all of each prompt but its last token read, and that last token."""
    check_rows(prompt, lengths, _vocab_size(params))
    return consume(partial(read, params), start(params, prompt.shape[0]), prompt, lengths)


def _vocab_size(params: Params) -> int:
    return params["emission"].shape[1]


def _scores(params: Params, tokens: Any) -> Float[Array, "T B K"]:
    return params["emission"].T[tokens].transpose(1, 0, 2)


def _real(tokens: Any, lengths: Any) -> Bool[Array, "T B"]:
    return jnp.arange(tokens.shape[1])[:, None] < lengths


@jax.jit
def _forward(params: Params, scores: Float[Array, "T B K"], lengths: Any) -> Float[Array, "B"]:
    real = jnp.arange(scores.shape[0])[:, None] < lengths

    def forward(alpha, inputs):
        score, real = inputs
        new = _log_matmul(alpha, params["transition"]) + score
        return jnp.where(real[:, None], new, alpha), None

    alpha, _ = lax.scan(forward, params["initial"] + scores[0], (scores[1:], real[1:]))
    # logsumexp of a row that is all -inf has a NaN gradient.
    possible = alpha.max(axis=-1) > -jnp.inf
    total = jax.nn.logsumexp(jnp.where(possible[:, None], alpha, 0.0), axis=-1)
    return jnp.where(possible, total, -jnp.inf)


def _log_matmul(weights: Float[Array, "B K"], table: Float[Array, "K N"]) -> Float[Array, "B N"]:
    """Return logsumexp over k of weights[b, k] + table[k, n], as one matrix product."""
    top = lax.stop_gradient(weights.max(axis=1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    product = jnp.matmul(jnp.exp(weights - top), jnp.exp(table), precision="highest")
    # exp underflows 1e-38 below the largest term, which matters only where the sum is tiny.
    return lax.cond(
        jnp.all(product > LITTLE),
        lambda: jnp.log(product) + top,
        lambda: _log_matmul_exact(weights, table),
    )


def _log_matmul_exact(weights: Float[Array, "B K"], table: Float[Array, "K N"]) -> Array:
    """The same as `_log_matmul` without underflow, in O(B K N) memory; -inf for an empty sum."""
    every = weights[:, :, None] + table
    top = lax.stop_gradient(every.max(axis=1))
    some = top > -jnp.inf
    total = jnp.sum(jnp.exp(every - jnp.where(some, top, 0.0)[:, None]), axis=1)
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + top, -jnp.inf)
