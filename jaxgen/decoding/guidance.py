"""Classifier-free guidance: combine the logits of two prompts, or two models, at every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxgen import arguments
from jaxgen.arguments import Range
from jaxgen.decoding.loop import Step
from jaxgen.decoding.record import record
from jaxgen.decoding.setting import Number, column


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


@record
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
