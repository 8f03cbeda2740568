"""An autoencoder of texts as a model of the next token: its decoder, mixed over draws of a latent.

p(text) is estimated by the mean of p(text | z) over fixed draws z of the prior. Each token read
reweights the draws by Bayes' rule, so the next-token probabilities multiply to exactly that mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen.models.classic import vae
from jaxgen.models.classic.documents import check_rows
from jaxgen.models.classic.vae import VAE
from jaxgen.ops.cache import Cache


class Belief(NamedTuple):
    """Decoding cache of B texts under K draws.

    cache: the decoder's, with B x K rows, the draws of a text adjacent; weight: log probability of
    each draw; logprobs: log probability of the next token under it.
    """

    cache: Cache
    weight: Float[Array, "B K"]
    logprobs: Float[Array, "B K V"]


def draws(config: VAE, number: int, key: PRNGKeyArray) -> Float[Array, "K Z"]:
    """Return latents of the prior."""
    return jax.random.normal(key, (number, config.latent))


def start(
    params: vae.Params, config: VAE, latents: Float[Array, "K Z"], batch: int, capacity: int
) -> Belief:
    """Return the belief before the first token; `capacity` tokens can be read."""
    first, cache = vae.begin(params, config, latents, capacity + 1)
    logits, cache = vae.step(params, config)(first, cache)
    number = len(latents)
    logprobs = jnp.broadcast_to(jax.nn.log_softmax(logits), (batch, *logits.shape))
    weight = jnp.full((batch, number), -jnp.log(number))
    return Belief(cache.take(jnp.tile(jnp.arange(number), batch)), weight, logprobs)


def step(params: vae.Params, config: VAE) -> Callable[..., tuple[Array, Belief]]:
    """Return the mixture as a decoding step: (tokens [B], belief) -> (logits [B, V], belief)."""
    inner = vae.step(params, config)

    def run(tokens: Int[Array, "B"], belief: Belief) -> tuple[Array, Belief]:
        own = jnp.take_along_axis(belief.logprobs, tokens[:, None, None], axis=2)[..., 0]
        weight = jax.nn.log_softmax(belief.weight + own)
        logits, cache = inner(jnp.repeat(tokens, weight.shape[1]), belief.cache)
        logprobs = jax.nn.log_softmax(logits).reshape(belief.logprobs.shape)
        mixed = jax.nn.logsumexp(weight[..., None] + logprobs, axis=1)
        return mixed, Belief(cache, weight, logprobs)

    return run


def prefill(
    params: vae.Params,
    config: VAE,
    latents: Float[Array, "K Z"],
    prompt: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    capacity: int,
) -> tuple[Int[Array, "B"], Belief]:
    """Return (first, belief): all of each prompt but its last token read, and that last token."""
    check_rows(prompt, lengths, config.model.V)
    run = step(params, config)

    def more(old: Belief, inputs: Any) -> tuple[Belief, None]:
        position, tokens = inputs
        going = position < lengths - 1
        new = run(tokens, old)[1]
        # Rows whose prompt has ended are rewound to where they were.
        rows = jnp.repeat(going, old.weight.shape[1])
        cache = new.cache.rewind(jnp.where(rows, new.cache.length, old.cache.length))
        weight = jnp.where(going[:, None], new.weight, old.weight)
        logprobs = jnp.where(going[:, None, None], new.logprobs, old.logprobs)
        return Belief(cache, weight, logprobs), None

    belief = start(params, config, latents, len(prompt), capacity)
    belief, _ = jax.lax.scan(more, belief, (jnp.arange(prompt.shape[1]), prompt.T))
    return jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0], belief
