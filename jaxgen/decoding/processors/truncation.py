"""Temperature and the truncations of a distribution: top-k, top-p, min-p, typical and others.

Each keeps the tokens that transformers' processor of the same name keeps. Ties at the cut go to
the smaller ids (in transformers, to torch's sort). A setting is a number or an array [B]. `keep`
is the minimum number of tokens left; beam search needs 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgen.arguments import above, at_least, between
from jaxgen.decoding import top_mass
from jaxgen.decoding.per_request import Number, Whole, column, refuse
from jaxgen.decoding.processors.base import BANNED, processor, static
from jaxgen.ops.cpu.argmax import argmax

MASS_SCALE = 2.0**30  # probability mass 1 as an integer: integer sums are exact in any order
TOP_H_WIDTH = 100  # as in the reference implementation: top-h considers the 100 best tokens
_SHARE = between(0, 1, above=True)
_CUTOFF = between(0, 1, below=True, note="0 is off")


def _threshold(logits: Float[Array, "B V"], keep: int) -> Float[Array, "B 1"]:
    """The `keep`-th largest logit."""
    return jax.lax.top_k(logits, min(keep, logits.shape[-1]))[0][:, -1:]


def _unsort(flags: Bool[Array, "B V"], order: Array) -> Bool[Array, "B V"]:
    """Scatter flags of sorted tokens back to the order of ids."""
    return jnp.take_along_axis(flags, jnp.argsort(order, axis=-1), -1)


def _take_first(flags: Bool[Array, "B V"], room: Int[Array, "B 1"]) -> Bool[Array, "B V"]:
    """Return the first `room` flags of each row; the cumsum runs only if a row has more."""
    more = jnp.any(jnp.sum(flags, axis=-1, keepdims=True) > room)
    return jax.lax.cond(more, lambda: flags & (jnp.cumsum(flags, axis=-1) <= room), lambda: flags)


def _entropy(logits: Float[Array, "B V"]) -> Float[Array, "B 1"]:
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    terms = jnp.where(jnp.isfinite(logprobs), jnp.exp(logprobs) * logprobs, 0.0)
    return -jnp.sum(terms, axis=-1, keepdims=True)


@processor(value=at_least(0, note="0 is greedy"))
class temperature:
    """Divide logits by `value`; 0 keeps only the largest logit, the first of equals.

    Args:
        value: number or [B], at least 0. Raises ConfigError below 0, and if not finite.

    >>> jaxgen.temperature(0.5)(jnp.array([[1.0, 2.0]]))
    Array([[2., 4.]], dtype=float32)
    """

    value: Number

    def validate(self, length: int, beams: int) -> None:
        """Raise ConfigError for a temperature of 0 with several beams."""
        if beams > 1:
            message = f"temperature={{}} with beams={beams}: every beam would have one way to go on"
            refuse(self.value, lambda x: x == 0, f"{message}; drop one")

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        value = column(self.value)
        best = argmax(logits)[..., None]
        greedy = jnp.where(jnp.arange(logits.shape[-1])[None] == best, logits, BANNED)
        return jnp.where(value > 0, logits / jnp.where(value > 0, value, 1.0), greedy)


@processor(count=at_least(1), keep=at_least(1))
class top_k:
    """Keep the `count` largest logits and those equal to the smallest kept (Fan et al. 2018).

    Args:
        count: integer or [B], at least 1. Raises ConfigError below 1.
        keep: minimum number of tokens left.

    >>> jaxgen.top_k(2)(jnp.array([[1.0, 3.0, 2.0]]))
    Array([[-inf,   3.,   2.]], dtype=float32)
    """

    count: Whole
    keep: int = static(1)

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        count = jnp.maximum(column(self.count), self.keep)
        count = jnp.clip(count, 1, logits.shape[-1]).astype(jnp.int32)
        need = jnp.broadcast_to(count, (*logits.shape[:-1], 1))
        cutoff = top_mass.mass_cutoff(logits, lambda x: jnp.ones(x.shape, jnp.int32), need)
        return jnp.where(logits >= cutoff, logits, BANNED)


@processor(mass=_SHARE, keep=at_least(1))
class top_p:
    """Keep the smallest set of top tokens with total probability `mass` (Holtzman et al. 2020).

    Args:
        mass: number or [B] in (0, 1]; 1 is off. Raises ConfigError outside.
        keep: minimum number of tokens left.

    >>> jaxgen.top_p(0.6)(jnp.log(jnp.array([[0.2, 0.5, 0.3]]))) > -jnp.inf
    Array([[False,  True,  True]], dtype=bool)
    """

    mass: Number
    keep: int = static(1)

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        mass = column(self.mass)
        best = jnp.max(logits, axis=-1, keepdims=True)
        unit = MASS_SCALE / jnp.sum(jnp.exp(logits - best), axis=-1, keepdims=True)

        def weigh(x: Float[Array, "B V"]) -> Int[Array, "B V"]:
            return jnp.round(jnp.exp(x - best) * unit).astype(jnp.int32)

        weights = weigh(logits)
        # Subtract the drop tail: rounding the mass itself would lose the tail of one near 1.
        tail = jnp.floor((1 - mass) * MASS_SCALE).astype(jnp.int32)
        need = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True) - tail, 1)
        cutoff = top_mass.mass_cutoff(logits, weigh, need)
        if self.keep > 1:
            cutoff = jnp.minimum(cutoff, _threshold(logits, self.keep))
        above, equal = ~(logits <= cutoff), logits == cutoff
        left = need - jnp.sum(jnp.where(above, weights, 0), axis=-1, keepdims=True)
        room = jnp.maximum(
            -(-left // jnp.maximum(weigh(cutoff), 1)),
            self.keep - jnp.sum(above, axis=-1, keepdims=True),
        )
        allowed = above | _take_first(equal, room) | (mass >= 1)
        return jnp.where(allowed, logits, BANNED)


@processor(share=_SHARE)
class top_h:
    """Keep the top tokens that hold a `share` of the entropy (Potraghloo et al. 2025).

    Args:
        share: number or [B] in (0, 1]. Raises ConfigError outside.

    >>> jaxgen.top_h(0.5)(jnp.log(jnp.array([[0.2, 0.7, 0.1]]))) > -jnp.inf
    Array([[False,  True, False]], dtype=bool)
    """

    share: Number

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        top, index = jax.lax.top_k(logits, min(TOP_H_WIDTH, logits.shape[-1]))
        probs = jax.nn.softmax(top, axis=-1)
        terms = jnp.where(probs > 0, -probs * jnp.log(probs), 0.0)
        allowed = (jnp.cumsum(terms, -1) <= _entropy(top) * column(self.share)) & (probs > 0)
        allowed = allowed.at[:, 0].set(True)
        rows = jnp.arange(logits.shape[0])[:, None]
        allowed = jnp.zeros(logits.shape, bool).at[rows, index].set(allowed)
        return jnp.where(allowed, logits, BANNED)


@processor(share=between(0, 1, note="0 is off"), keep=at_least(1))
class min_p:
    """Keep tokens with at least `share` times the top probability (Nguyen et al. 2024).

    Args:
        share: number or [B] in [0, 1]; 0 is off. Raises ConfigError outside.
        keep: minimum number of tokens left.

    >>> jaxgen.min_p(0.5)(jnp.log(jnp.array([[0.2, 0.5, 0.3]]))) > -jnp.inf
    Array([[False,  True,  True]], dtype=bool)
    """

    share: Number
    keep: int = static(1)

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        probs = jax.nn.softmax(logits, axis=-1)
        drop = probs < column(self.share) * jnp.max(probs, axis=-1, keepdims=True)
        if self.keep > 1:
            best = jax.lax.top_k(probs, min(self.keep, logits.shape[-1]))[1]
            drop &= ~jnp.any(jnp.arange(logits.shape[-1]) == best[..., None], axis=1)
        return jnp.where(drop, BANNED, logits)


@processor(mass=_SHARE, keep=at_least(1))
class typical:
    """Keep the most typical tokens with total probability `mass` (Meister et al. 2022).

    A token is typical if its surprise, -log p, is near the entropy.

    Args:
        mass: number or [B] in (0, 1]; 1 is off. Raises ConfigError outside.
        keep: minimum number of tokens left.

    >>> jaxgen.typical(0.3)(jnp.log(jnp.array([[0.5, 0.35, 0.15]]))) > -jnp.inf
    Array([[False,  True, False]], dtype=bool)
    """

    mass: Number
    keep: int = static(1)

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        surprise = -jax.nn.log_softmax(logits, axis=-1)
        distance = jnp.abs(surprise - _entropy(logits))
        order = jnp.argsort(distance, axis=-1, stable=True)
        probs = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), axis=-1)
        mass, width = column(self.mass), logits.shape[-1]
        reached = jnp.sum(jnp.cumsum(probs, -1) < mass, axis=-1, keepdims=True)
        ordered = jnp.take_along_axis(distance, order, -1)
        furthest = jnp.take_along_axis(ordered, jnp.minimum(reached, width - 1), -1)
        drop = (ordered > furthest) & (jnp.arange(width)[None] >= self.keep) & (mass < 1)
        return jnp.where(_unsort(drop, order), BANNED, logits)


@processor(cutoff=_CUTOFF, keep=at_least(1))
class epsilon:
    """Drop tokens with probability below `cutoff`, never the top one (Hewitt et al. 2022).

    Args:
        cutoff: number or [B] in [0, 1); 0 is off. Raises ConfigError outside.
        keep: minimum number of tokens left.

    >>> jaxgen.epsilon(0.25)(jnp.log(jnp.array([[0.2, 0.5, 0.3]]))) > -jnp.inf
    Array([[False,  True,  True]], dtype=bool)
    """

    cutoff: Number
    keep: int = static(1)

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        drop = jax.nn.softmax(logits, axis=-1) < column(self.cutoff)
        return jnp.where(drop & (logits < _threshold(logits, self.keep)), BANNED, logits)


@processor(cutoff=_CUTOFF, keep=at_least(1))
class eta:
    """Drop tokens below min(`cutoff`, sqrt(`cutoff`) exp(-entropy)) (Hewitt et al. 2022).

    Args:
        cutoff: number or [B] in [0, 1); 0 is off. Raises ConfigError outside.
        keep: minimum number of tokens left.

    >>> jaxgen.eta(0.3)(jnp.log(jnp.array([[0.15, 0.5, 0.35]]))) > -jnp.inf
    Array([[False,  True,  True]], dtype=bool)
    """

    cutoff: Number
    keep: int = static(1)

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        cutoff = column(self.cutoff)
        eta = jnp.minimum(cutoff, jnp.sqrt(cutoff) * jnp.exp(-_entropy(logits)))
        drop = jax.nn.softmax(logits, axis=-1) < eta
        return jnp.where(drop & (logits < _threshold(logits, self.keep)), BANNED, logits)


@processor(count=above(0, infinite=True, note="infinity is off"))
class top_n_sigma:
    """Keep logits within `count` standard deviations of the largest (Tang et al. 2024).

    The sample standard deviation, as in the authors' code, over logits that are not -inf: the same
    tokens before and after any temperature.

    Args:
        count: number or [B], greater than 0; infinity is off. Raises ConfigError otherwise.

    >>> jaxgen.top_n_sigma(1.0)(jnp.array([[0.0, 1.0, 3.0, 4.0]]))
    Array([[-inf, -inf,   3.,   4.]], dtype=float32)
    """

    count: Number

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        finite = jnp.isfinite(logits)
        number = jnp.sum(finite, -1, keepdims=True).astype(logits.dtype)
        mean = jnp.sum(jnp.where(finite, logits, 0.0), -1, keepdims=True) / jnp.maximum(number, 1)
        squares = jnp.sum(jnp.where(finite, (logits - mean) ** 2, 0.0), -1, keepdims=True)
        sigma = jnp.sqrt(squares / jnp.maximum(number - 1, 1))
        # inf * 0 is NaN and compares false, so an infinite count drops nothing.
        cutoff = jnp.max(logits, axis=-1, keepdims=True) - column(self.count) * sigma
        return jnp.where(logits < cutoff, BANNED, logits)


@processor()
class renormalize:
    """Turn logits into log-probabilities (log-softmax).

    >>> jnp.exp(jaxgen.renormalize()(jnp.array([[0.0, 0.0]])))
    Array([[0.5, 0.5]], dtype=float32)
    """

    def __call__(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return jax.nn.log_softmax(logits, axis=-1)
