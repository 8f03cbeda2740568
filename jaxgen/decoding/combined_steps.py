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
from jaxgen.errors import ConfigError
from jaxgen.pytree import register_dataclass

KEPT = 0.1  # of the paper: tokens this much less likely than the likeliest are never drawn
BASE = -1e-3  # what the early log-probability of such a token is set to
Layered = Callable[[Int[Array, "B"], Any], tuple[Float[Array, "B V"], Float[Array, "L B V"], Any]]


@arguments.checked(weight=at_least(0, note="0 is off"))
def fused(model: Step, prior: Step, weight: Number) -> Step:
    """Return the step of shallow fusion (Gulcehre et al. 2015) over a pair of caches.

    Its logits are log p + weight * log q of the model's p and the prior's q, an n-gram for
    instance; 0 is off. What the model bans stays banned; with a weight above 0 so does what the
    prior bans. weight: a number or [B], finite and 0 or more. Give the pair (model's cache,
    prior's cache) to `decode`, both filled with the prompt. Raises ConfigError for another weight,
    or for steps of two vocabularies.
    """
    return _Fused(model, prior, weight)


@register_dataclass
@dataclass(frozen=True)
class _Fused:
    model: Step
    prior: Step
    weight: Number

    def __call__(self, tokens: Int[Array, "B"], caches: Any) -> tuple[Array, Any]:
        own, first = self.model(tokens, caches[0])
        other, second = self.prior(tokens, caches[1])
        if own.shape != other.shape:
            raise ConfigError(
                f"a model of {own.shape[1]} ids and a prior of {other.shape[1]} do not fuse; "
                f"train the prior with the model's vocabulary"
            )
        own = jax.nn.log_softmax(own.astype(jnp.float32), axis=-1)
        other = jax.nn.log_softmax(other.astype(jnp.float32), axis=-1)
        share = jnp.broadcast_to(column(self.weight), other.shape)
        # Zero times the minus infinity of a ban would be NaN.
        return own + jnp.where(share > 0, share * other, 0.0), (first, second)


@arguments.checked(scale=Range(note="1 is off"))
def classifier_free_guidance(conditional: Step, unconditional: Step, scale: Number) -> Step:
    """Return the step of classifier-free guidance (Sanchez et al. 2023) over a pair of caches.

    Its logits are u + scale * (c - u), of log-probabilities c and u; 1 is off, 0 leaves the
    unconditional one alone, a negative scale steers away. scale: a number or [B]; ConfigError
    unless finite. Both steps get the same tokens: give the pair (conditional cache, unconditional
    cache) to `decode`, the second filled with a prompt that lacks the condition.
    """
    return _ClassifierFreeGuidance(conditional, unconditional, scale)


guided = classifier_free_guidance  # the name of version 0.1


@register_dataclass
@dataclass(frozen=True)
class _ClassifierFreeGuidance:
    conditional: Step
    unconditional: Step
    scale: Number

    def __call__(self, tokens: Int[Array, "B"], caches: Any) -> tuple[Array, Any]:
        with_it, first = self.conditional(tokens, caches[0])
        without, second = self.unconditional(tokens, caches[1])
        with_it = jax.nn.log_softmax(with_it.astype(jnp.float32), axis=-1)
        without = jax.nn.log_softmax(without.astype(jnp.float32), axis=-1)
        # Where both ban a token, inf - inf would be NaN; it must stay banned.
        difference = jnp.where(jnp.isneginf(without), 0.0, with_it - without)
        mixed = jnp.where(jnp.isneginf(with_it), with_it, without + column(self.scale) * difference)
        return mixed, (first, second)


@arguments.checked
def layer_contrast(step: Layered) -> Step:
    """Return the step whose logits are what the late layers know and an early one does not.

    step: (tokens, cache) -> (logits of the last layer [B, V], those of candidate early layers
    [L, B, V], cache). For each request the early layer is taken whose distribution is furthest from
    the last one's, by Jensen and Shannon's divergence. (transformers took one layer for the whole
    batch, so that a request's text depended on its neighbours.)
    """
    return _LayerContrast(step)


@register_dataclass
@dataclass(frozen=True)
class _LayerContrast:
    step: Layered

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
    likely = last >= jnp.max(last, axis=-1, keepdims=True) + jnp.log(jnp.float32(KEPT))
    return jnp.where(likely, last, -jnp.inf) - jnp.where(likely, base, BASE)
