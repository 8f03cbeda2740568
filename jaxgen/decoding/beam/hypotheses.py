"""The texts of a beam search that have ended: the best are kept, and they tell when it is over."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgen.decoding.beam.settings import STOP_RULES, Search
from jaxgen.decoding.history import NO_TOKEN
from jaxgen.decoding.per_request import column


class Ended(NamedTuple):
    """The best texts that have ended, the best first within their group [B, K, ...]."""

    tokens: Array
    scores: Array
    num_generated: Array
    reason: Array
    logprobs: Array
    constraints_met: Array  # whether all words are there


class Texts(NamedTuple):
    """Texts that may join them [B, C, ...]; scores are sums of log-probabilities."""

    tokens: Array
    scores: Array
    reason: Array
    logprobs: Array
    constraints_met: Array


def none(batch: int, count: int, length: int) -> Ended:
    """Return room for `count` texts of each request, of which there is none yet."""
    zero = jnp.zeros((batch, count), jnp.int32)
    return Ended(
        jnp.full((batch, count, length), NO_TOKEN, jnp.int32),
        jnp.full((batch, count), -jnp.inf, jnp.float32),
        zero,
        zero,
        jnp.zeros((batch, count, length), jnp.float32),
        jnp.zeros((batch, count), bool),
    )


def merged(
    search: Search,
    ended: Ended,
    fresh: Texts,
    which: Bool[Array, "B C"],
    num_generated: Int[Array, ""],
) -> Ended:
    """Return the best of the ended texts and of the `which` fresh ones, all of one length."""
    penalty = column(jnp.asarray(search.length_penalty, jnp.float32))
    scores = fresh.scores / jnp.power(num_generated.astype(jnp.float32), penalty)
    new = Ended(
        fresh.tokens,
        jnp.where(which, scores, -jnp.inf),
        jnp.broadcast_to(num_generated, which.shape).astype(jnp.int32),
        jnp.broadcast_to(fresh.reason, which.shape).astype(jnp.int32),
        fresh.logprobs,
        fresh.constraints_met,
    )
    both = jax.tree.map(lambda old, x: jnp.concatenate([old, x], axis=1), ended, new)
    index = lax.top_k(both.scores, ended.scores.shape[1])[1]
    return jax.tree.map(lambda x: gathered(x, index), both)


def satisfied(
    search: Search,
    ended: Ended,
    best: Float[Array, "B"],
    num_generated: Int[Array, ""],
    limit: Int[Array, "B"],
) -> Bool[Array, "B"]:
    """Return which groups are full of texts that no open beam will beat, by the search's rule.

    best: the largest sum of log-probabilities of an open beam, of `num_generated` tokens.
    """
    rule = jnp.asarray(search.early_stopping)
    penalty = jnp.broadcast_to(jnp.asarray(search.length_penalty, jnp.float32), best.shape)
    far = (rule == STOP_RULES["never"]) & (penalty > 0)
    at = jnp.where(far, limit, num_generated).astype(jnp.float32)
    worst = jnp.min(ended.scores, axis=1)
    beaten = worst >= best / jnp.power(at, penalty)
    return jnp.isfinite(worst) & ((rule == STOP_RULES[True]) | beaten)


def gathered(x: Any, index: Int[Array, "B M"]) -> Array:
    """Return x[b, index[b, m]]."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)
