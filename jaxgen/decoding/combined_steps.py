"""Steps made of other steps: shallow fusion, classifier-free guidance, contrast of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.arguments import Range, at_least
from jaxgen.decoding.loop import Step
from jaxgen.decoding.per_request import Number, column
from jaxgen.decoding.processors.base import static
from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass

RELATIVE_TOP = 0.1  # of the paper: tokens below this share of the top probability are banned
BASE = -1e-3  # what the early log-probability of such a token is set to
LayeredStep = Callable[
    [Int[Array, "B"], Any], tuple[Float[Array, "B V"], Float[Array, "L B V"], Any]
]


@arguments.checked(weight=at_least(0, note="0 is off"))
def fused(model: Step, prior: Step, weight: Number) -> Step:
    """Return the step of shallow fusion (Gulcehre et al. 2015) over a pair of caches.

    Its logits are log p + weight * log q. What the model bans stays banned; with a weight above 0
    so does what the prior bans.

    Args:
        model: the step of p.
        prior: the step of q, an n-gram for instance, over the same vocabulary.
        weight: number or [B], at least 0; 0 is off.

    Returns:
        The step of a cache (model's, prior's), both filled with the prompt.

    Raises:
        ConfigError: for a negative weight, or, when called, for steps of two vocabularies.

    >>> one = lambda tokens, cache: (jnp.log(jnp.array([[0.2, 0.8]])), cache)
    >>> logits, _ = jaxgen.fused(one, one, 1.0)(jnp.array([0]), ((), ()))
    >>> jnp.round(jnp.exp(logits), 2)
    Array([[0.04, 0.64]], dtype=float32)
    """
    return _PairOfSteps(model, prior, weight, _fuse)


@arguments.checked(scale=Range(note="1 is off"))
def classifier_free_guidance(conditional: Step, unconditional: Step, scale: Number) -> Step:
    """Return the step of classifier-free guidance (Sanchez et al. 2023) over a pair of caches.

    Its logits are u + scale * (c - u), of log-probabilities c and u.

    Args:
        conditional: the step of c.
        unconditional: the step of u; it gets the same tokens, after a prompt without the condition.
        scale: number or [B]; 1 is off, 0 leaves u alone, a negative scale steers away.

    Returns:
        The step of a cache (conditional, unconditional).

    Raises:
        ConfigError: if the scale is not finite, or, when called, for steps of two vocabularies.

    >>> c = lambda tokens, cache: (jnp.array([[0.0, 2.0]]), cache)
    >>> u = lambda tokens, cache: (jnp.array([[0.0, 1.0]]), cache)
    >>> logits, _ = jaxgen.classifier_free_guidance(c, u, 3.0)(jnp.array([0]), ((), ()))
    >>> jnp.round(logits[:, 1] - logits[:, 0], 3)
    Array([4.], dtype=float32)
    """
    return _PairOfSteps(conditional, unconditional, scale, _guide)


guided = classifier_free_guidance  # the name of version 0.1


@arguments.checked(weight=at_least(0, note="0 is off"))
def dexperts(model: Step, expert: Step, antiexpert: Step, weight: Number) -> Step:
    """Return the step of DExperts (Liu et al. 2021): towards an expert, away from an anti-expert.

    Its logits are log p + weight * (log e - log a): `fused` with the contrast of the two. What the
    model bans stays banned; with a weight above 0 so does what the expert bans.

    Args:
        model: the step of p.
        expert: the step of e, a smaller model of texts that are wanted, of the same vocabulary.
        antiexpert: the step of a, the same of texts that are not.
        weight: number or [B], at least 0; 0 is off.

    Returns:
        The step of a cache (model's, (expert's, anti-expert's)), all filled with the prompt.

    Raises:
        ConfigError: for a negative weight, or, when called, for steps of several vocabularies.

    >>> even = lambda tokens, cache: (jnp.zeros((1, 2)), cache)
    >>> one = lambda tokens, cache: (jnp.array([[0.0, 1.0]]), cache)
    >>> logits, _ = jaxgen.dexperts(even, one, even, 2.0)(jnp.array([0]), ((), ((), ())))
    >>> jnp.round(logits[:, 1] - logits[:, 0], 3)
    Array([2.], dtype=float32)
    """
    return fused(model, _PairOfSteps(expert, antiexpert, 1.0, _contrast), weight)


@arguments.checked(decay=at_least(0, note="0 is off"))
def self_debias(model: Step, biased: Step, decay: Number) -> Step:
    """Return the step of self-debiasing (Schick et al. 2021) over a pair of caches.

    A token that the biased prompt makes likelier, by d = p - b < 0, is made less likely by
    exp(decay * d); all others keep their probability, up to the norm.

    Args:
        model: the step of p.
        biased: the same model after a prompt that asks for what is not wanted, before the request's
            own: "The following text is hostile:"; it gets the same tokens.
        decay: number or [B], at least 0; 0 is off, the paper has 10 to 100.

    Returns:
        The step of a cache (model's, biased one's).

    Raises:
        ConfigError: for a negative decay, or, when called, for steps of two vocabularies.

    >>> even = lambda tokens, cache: (jnp.zeros((1, 2)), cache)
    >>> one = lambda tokens, cache: (jnp.log(jnp.array([[0.25, 0.75]])), cache)
    >>> logits, _ = jaxgen.self_debias(even, one, 4.0)(jnp.array([0]), ((), ()))
    >>> jnp.round(logits[:, 1] - logits[:, 0], 3)
    Array([-1.], dtype=float32)
    """
    return _PairOfSteps(model, biased, decay, _debias)


@register_dataclass
@dataclass(frozen=True)
class _PairOfSteps:
    first: Step
    second: Step
    weight: Number
    combine: Callable[[Array, Array, Array], Array] = static(None)

    def __call__(self, tokens: Int[Array, "B"], caches: Any) -> tuple[Array, Any]:
        one, first = self.first(tokens, caches[0])
        two, second = self.second(tokens, caches[1])
        if one.shape != two.shape:
            raise ConfigError(
                f"steps of {one.shape[1]} and {two.shape[1]} ids do not combine; train the second "
                f"model with the vocabulary of the first"
            )
        one = jax.nn.log_softmax(one.astype(jnp.float32), axis=-1)
        two = jax.nn.log_softmax(two.astype(jnp.float32), axis=-1)
        return self.combine(one, two, column(self.weight)), (first, second)


def _fuse(model: Array, prior: Array, weight: Array) -> Array:
    weight = jnp.broadcast_to(weight, prior.shape)
    # Zero times the minus infinity of a ban would be NaN.
    return model + jnp.where(weight > 0, weight * prior, 0.0)


def _guide(conditional: Array, unconditional: Array, scale: Array) -> Array:
    # Where both ban a token, inf - inf would be NaN; it must stay banned.
    difference = jnp.where(jnp.isneginf(unconditional), 0.0, conditional - unconditional)
    guided = unconditional + scale * difference
    return jnp.where(jnp.isneginf(conditional), conditional, guided)


def _contrast(expert: Array, antiexpert: Array, weight: Array) -> Array:
    # One that both ban stays banned; one that the anti-expert alone bans is as the expert has it.
    return expert - jnp.where(jnp.isneginf(antiexpert), 0.0, antiexpert)


def _debias(model: Array, biased: Array, decay: Array) -> Array:
    return model + decay * jnp.minimum(jnp.exp(model) - jnp.exp(biased), 0.0)


@arguments.checked
def layer_contrast(step: LayeredStep) -> Step:
    """Return the step of DoLa: the last layer against an early one (Chuang et al. 2024).

    For each request the early layer is taken whose distribution is furthest from the last one's, by
    Jensen-Shannon divergence; transformers took one layer for the whole batch.

    Args:
        step: (tokens, cache) -> (logits of the last layer [B, V], those of candidate early layers
            [L, B, V], cache).

    Returns:
        The step of log p(last) - log p(early); -inf where p(last) is under a tenth of the largest.

    >>> layers = lambda tokens, cache: (jnp.array([[0.0, 1.0]]), jnp.zeros((1, 1, 2)), cache)
    >>> logits, _ = jaxgen.layer_contrast(layers)(jnp.array([0]), ())
    >>> jnp.round(logits[:, 1] - logits[:, 0], 3)
    Array([1.], dtype=float32)
    """
    return _LayerContrast(step)


@register_dataclass
@dataclass(frozen=True)
class _LayerContrast:
    step: LayeredStep

    def __call__(self, tokens: Int[Array, "B"], cache: Any) -> tuple[Array, Any]:
        logits, early, cache = self.step(tokens, cache)
        return contrast(logits, early), cache


def contrast(logits: Float[Array, "B V"], early: Float[Array, "L B V"]) -> Float[Array, "B V"]:
    """Return log p(last) - log p(early); -inf where p(last) is under a tenth of the largest."""
    last = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)[None]
    layers = jax.nn.log_softmax(early.astype(jnp.float32), axis=-1)
    middle = 0.5 * (jnp.exp(last) + jnp.exp(layers))
    # As torch's kl_div has it, with the mixture as the target: sum m (log m - log p).
    divergence = middle * (2 * jnp.log(middle) - last - layers)
    furthest = jnp.argmax(jnp.mean(jnp.where(middle > 0, divergence, 0.0), axis=-1), axis=0)
    base = jnp.take_along_axis(layers, furthest[None, :, None], axis=0)[0]
    last = last[0]
    likely = last >= jnp.max(last, axis=-1, keepdims=True) + jnp.log(jnp.float32(RELATIVE_TOP))
    return jnp.where(likely, last, -jnp.inf) - jnp.where(likely, base, BASE)
