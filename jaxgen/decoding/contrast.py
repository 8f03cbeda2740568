"""DoLa: the last layer's logits against those of an earlier layer (Chuang et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen import arguments
from jaxgen.decoding.loop import Step
from jaxgen.decoding.record import record

KEPT = 0.1  # of the paper: tokens this much less likely than the likeliest are never drawn
BASE = -1e-3  # what the early log-probability of such a token is set to
Layered = Callable[[Int[Array, "B"], Any], tuple[Float[Array, "B V"], Float[Array, "L B V"], Any]]


@arguments.checked
def layer_contrast(step: Layered) -> Step:
    """Return the step whose logits are what the late layers know and an early one does not.

    step: (tokens, cache) -> (logits of the last layer [B, V], those of candidate early layers
    [L, B, V], cache). For each request the early layer is taken whose distribution is furthest from
    the last one's, by Jensen and Shannon's divergence. (transformers took one layer for the whole
    batch, so that a request's text depended on its neighbours.)
    """
    return _LayerContrast(step)


@record
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
