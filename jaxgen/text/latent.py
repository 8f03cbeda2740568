"""Texts by way of a latent: written again, drawn from the prior, or from between two texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxgen.decoding.chain import Chain, greedy
from jaxgen.decoding.loop import Keys, decode
from jaxgen.errors import ConfigError
from jaxgen.models.classic import vae
from jaxgen.models.classic.vae import VAE


def write(
    params: vae.Params,
    config: VAE,
    latent: Float[Array, "B Z"],
    key: Keys,
    *,
    length: int,
    sample: Chain | None = None,
) -> Int[Array, "B length"]:
    """Return the texts that the decoder makes of latents, at most `length` ids and its eos.

    sample: a `chain`; None takes the likeliest token. Raises ConfigError if `length` exceeds the
    context.
    """
    if not 1 <= length <= config.model.context - 1:
        raise ConfigError(f"length={length} must be from 1 to {config.model.context - 1}")
    first, cache = vae.begin(params, config, latent, length + 1)
    prompt = first[:, None]
    sampler = greedy() if sample is None else sample
    stop = jnp.asarray([config.eos])
    step = vae.step(params, config)
    return decode(step, cache, first, key, sampler, length, stop=stop, prompt=prompt)[0]


def reconstruct(
    params: vae.Params,
    config: VAE,
    tokens: vae.Ids,
    lengths: vae.Count,
    key: Keys,
    *,
    length: int,
    sample: Chain | None = None,
) -> Int[Array, "B length"]:
    """Return texts written again from the means of their latents; the rest is that of `write`."""
    seen = vae.posterior(params, config, tokens, lengths)
    return write(params, config, seen.mean, key, length=length, sample=sample)


def sample_prior(
    params: vae.Params,
    config: VAE,
    number: int,
    key: Array,
    *,
    length: int,
    sample: Chain | None = None,
) -> Int[Array, "N length"]:
    """Return `number` texts of latents drawn from the standard normal."""
    drawing, writing = jax.random.split(key)
    latent = jax.random.normal(drawing, (number, config.latent))
    return write(params, config, latent, writing, length=length, sample=sample)


def interpolate(
    params: vae.Params,
    config: VAE,
    tokens: Int[Array, "2 T"],
    lengths: Int[Array, "2"],
    key: Keys,
    *,
    number: int,
    length: int,
    sample: Chain | None = None,
) -> Int[Array, "N length"]:
    """Return `number` texts from the first to the second, on the line between their latents."""
    if number < 2:
        raise ConfigError(f"number={number} must be at least 2: both ends")
    a, b = vae.posterior(params, config, tokens, lengths).mean
    share = jnp.linspace(0, 1, number)[:, None]
    latent = (1 - share) * a + share * b
    return write(params, config, latent, key, length=length, sample=sample)
