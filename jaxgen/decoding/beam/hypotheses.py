"""The finished texts of a beam search: the best are kept, and decide when a request is done."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen.decoding.beam.settings import STOP_RULES, Search
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.per_request import column


class Hypotheses(NamedTuple):
    """The best finished texts, the best first within their group [B, K, ...]."""

    tokens: Array
    scores: Array  # logprob sum / num_generated^length_penalty; -inf: no text
    num_generated: Array
    reason: Array
    logprobs: Array
    constraints_met: Array


class Candidates(NamedTuple):
    """Texts that may become hypotheses [B, C, ...]; scores are sums of log-probabilities."""

    tokens: Array
    scores: Array
    reason: Array
    logprobs: Array
    constraints_met: Array


def empty(batch: int, count: int, length: int) -> Hypotheses:
    """Return room for `count` hypotheses of each request."""
    zero = jnp.zeros((batch, count), jnp.int32)
    return Hypotheses(
        jnp.full((batch, count, length), NO_TOKEN, jnp.int32),
        jnp.full((batch, count), -jnp.inf, jnp.float32),
        zero,
        zero,
        jnp.zeros((batch, count, length), jnp.float32),
        jnp.zeros((batch, count), bool),
    )


def merge(
    search: Search,
    finished: Hypotheses,
    fresh: Candidates,
    which: Bool[Array, "B C"],
    num_generated: Int[Array, ""],
) -> Hypotheses:
    """Return the best of the hypotheses and of the candidates in `which`, all of one length."""
    penalty = column(jnp.asarray(search.length_penalty, jnp.float32))
    scores = fresh.scores / jnp.power(num_generated.astype(jnp.float32), penalty)
    new = Hypotheses(
        fresh.tokens,
        jnp.where(which, scores, -jnp.inf),
        jnp.broadcast_to(num_generated, which.shape).astype(jnp.int32),
        jnp.broadcast_to(fresh.reason, which.shape).astype(jnp.int32),
        fresh.logprobs,
        fresh.constraints_met,
    )
    both = jax.tree.map(lambda old, x: jnp.concatenate([old, x], axis=1), finished, new)
    index = lax.top_k(both.scores, finished.scores.shape[1])[1]
    return gather(both, index)


def is_done(
    search: Search,
    finished: Hypotheses,
    best: Float[Array, "B"],
    num_generated: Int[Array, ""],
    limit: Int[Array, "B"],
) -> Bool[Array, "B"]:
    """Return which groups are full of hypotheses that no open beam will beat.

    best: largest sum of log-probabilities of an open beam, of `num_generated` tokens.
    """
    rule = jnp.asarray(search.early_stopping)
    penalty = jnp.broadcast_to(jnp.asarray(search.length_penalty, jnp.float32), best.shape)
    far = (rule == STOP_RULES["never"]) & (penalty > 0)
    at = jnp.where(far, limit, num_generated).astype(jnp.float32)
    worst = jnp.min(finished.scores, axis=1)
    beaten = worst >= best / jnp.power(at, penalty)
    return jnp.isfinite(worst) & ((rule == STOP_RULES[True]) | beaten)


def gather(tree: Any, index: Int[Array, "B M"]) -> Any:
    """Return the tree of x[b, index[b, m]], for its leaves x [B, K, ...]."""

    def one(x: Array) -> Array:
        return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(one, tree)
