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
