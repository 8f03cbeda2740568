"""Shallow fusion: add the weighted log-probabilities of a second model at every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxgen import arguments
from jaxgen.arguments import at_least
from jaxgen.decoding.loop import Step
from jaxgen.decoding.record import record
from jaxgen.decoding.setting import Number, column
from jaxgen.errors import ConfigError


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


@record
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
