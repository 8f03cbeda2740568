"""A variational autoencoder of texts from Transformer blocks (Bowman et al. 2016; Li et al. 2020).

The encoder maps a text to a Gaussian latent; a sample of it becomes a memory of a few slots, from
which the decoder reconstructs the text by cross-attention. Params: model (an encoder-decoder);
latent: mean and spread [D, Z], memory [Z, M, D], and their biases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen import arguments
from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import api
from jaxgen.models.classic.documents import check_rows
from jaxgen.ops.cache import Cache
from jaxgen.ops.losses import cross_entropy
from jaxgen.ops.memory import Memory

Params = dict[str, Any]
Ids = Int[Array | np.ndarray, "B T"]
Count = Int[Array | np.ndarray, "B"]


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class VAE:
    """Sizes of an autoencoder; raises ConfigError naming the field at fault.

    model: an encoder_decoder. latent: width of the latent; slots: of the memory it becomes.
    start: the id that the decoder begins with; eos: that ends a text.
    """

    model: ModelConfig
    latent: int
    slots: int
    start: int
    eos: int

    def __post_init__(self) -> None:
        if self.model.topology != "encoder_decoder" or self.model.head != "lm":
            raise ConfigError(
                f"topology={self.model.topology} with head={self.model.head}: an autoencoder of "
                f"texts is an encoder_decoder with head=lm"
            )
        for name in ("latent", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("start", "eos"):
            if not 0 <= getattr(self, name) < self.model.V:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is outside the vocabulary of {self.model.V}"
                )


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class Fit:
    """Training settings: Adam with learning rate `rate`.

    Each of `cycles` cycles of `cycle` steps raises the weight of the KL term from 0 to 1 over its
    first half (Fu et al. 2019); afterwards it is 1. One cycle is Bowman's annealing. free: nats of
    KL per latent dimension without penalty (Kingma et al. 2016). hide: share of the decoder's
    inputs that is masked (word dropout), so that it has to use the latent.
    """

    steps: int
    batch: int
    rate: float
    cycle: int
    cycles: int
    free: float
    hide: float

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "cycle", "cycles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.rate > 0 or self.free < 0 or not 0 <= self.hide < 1:
            raise ConfigError(
                f"rate={self.rate}, free={self.free}, hide={self.hide}: rate must be above 0, "
                f"free 0 or more, hide in [0, 1)"
            )

    def weight(self, step: Any) -> Any:
        """Return the weight of the KL term at a step, 0 to 1."""
        rising = jnp.minimum((step % self.cycle) / (0.5 * self.cycle), 1.0)
        return jnp.where(step < self.cycle * self.cycles, rising, 1.0)


class Gaussian(NamedTuple):
    """Independent normal numbers: means, and the logarithms of variances."""

    mean: Float[Array, "B Z"]
    spread: Float[Array, "B Z"]


def init(config: VAE, key: PRNGKeyArray) -> Params:
    """Return fresh params whose posterior is near the prior."""
    model, std = config.model, config.model.init_std
    width, latent = model.memory_width, config.latent
    shapes = {
        "mean": (width, latent),
        "spread": (width, latent),
        "memory": (latent, config.slots, width),
    }
    keys = jax.random.split(jax.random.fold_in(key, 1), len(shapes))
    parts = {
        name: std * jax.random.normal(k, shape)
        for (name, shape), k in zip(shapes.items(), keys, strict=True)
    }
    biases = {f"{name}_bias": jnp.zeros(shape[1:]) for name, shape in shapes.items()}
    # Scales a unit-normal latent to the norm of normalised hidden states.
    parts["memory"] = parts["memory"] / (std * latent**0.5)
    return {"model": api.init(model, key), "latent": parts | biases}


def posterior(params: Params, config: VAE, tokens: Ids, lengths: Count) -> Gaussian:
    """Return the latent's Gaussian given texts [B, T] of `lengths` ids each."""
    check_rows(tokens, lengths, config.model.V)
    real = _real(tokens, lengths)
    state = api.encode(params["model"], config.model, tokens, segments=real.astype(jnp.int32)).state
    pooled = jnp.sum(jnp.where(real[..., None], state, 0), axis=1) / real.sum(axis=1, keepdims=True)
    part = params["latent"]
    return Gaussian(
        pooled @ part["mean"] + part["mean_bias"], pooled @ part["spread"] + part["spread_bias"]
    )


def draw(gaussian: Gaussian, key: PRNGKeyArray) -> Float[Array, "B Z"]:
    """Return a reparameterised sample for each row (Kingma and Welling 2014)."""
    return gaussian.mean + jnp.exp(0.5 * gaussian.spread) * jax.random.normal(
        key, gaussian.mean.shape
    )


def divergence(gaussian: Gaussian) -> Float[Array, "B Z"]:
    """Return the KL divergence of each dimension from the standard normal, in nats."""
    return 0.5 * (jnp.exp(gaussian.spread) + gaussian.mean**2 - 1 - gaussian.spread)


def memory(params: Params, config: VAE, latent: Float[Array, "B Z"]) -> Memory:
    """Return latents as the memory that the decoder reads."""
    part = params["latent"]
    state = jnp.einsum("BZ,ZMD->BMD", latent, part["memory"]) + part["memory_bias"]
    return Memory(state, jnp.ones(state.shape[:2], jnp.int32))


def likelihood(
    params: Params,
    config: VAE,
    tokens: Ids,
    lengths: Count,
    latent: Float[Array, "B Z"],
    *,
    hidden: Float[Array, "B T"] | None = None,
) -> Float[Array, "B"]:
    """Return log p(text | latent) of each row in nats; its eos is part of the text.

    hidden: 1 where the decoder's input is replaced by its start id.
    """
    check_rows(tokens, lengths, config.model.V)
    tokens = jnp.asarray(tokens)
    begin = jnp.full_like(tokens[:, :1], config.start)
    inputs = jnp.concatenate([begin, tokens[:, :-1]], axis=1)
    if hidden is not None:
        inputs = jnp.where(hidden > 0, config.start, inputs)
    out = api.apply(params["model"], config.model, inputs, memory=memory(params, config, latent))
    assert out.logits is not None
    _, nll = cross_entropy(out.logits, tokens, smoothing=0.0, z=0.0)
    return -jnp.sum(jnp.where(_real(tokens, lengths), nll, 0), axis=1)


def elbo(
    params: Params, config: VAE, tokens: Ids, lengths: Count, key: PRNGKeyArray
) -> Float[Array, "B"]:
    """Return the evidence lower bound of each text in nats, from one sample."""
    gaussian = posterior(params, config, tokens, lengths)
    reconstruction = likelihood(params, config, tokens, lengths, draw(gaussian, key))
    return reconstruction - divergence(gaussian).sum(axis=1)


def bound(
    params: Params, config: VAE, tokens: Ids, lengths: Count, key: PRNGKeyArray, samples: int
) -> Float[Array, "B"]:
    """Return the importance-weighted bound of log p(text) (Burda et al. 2016), in nats.

    It rises with `samples` towards log p; in expectation one sample gives the ELBO.
    """
    gaussian = posterior(params, config, tokens, lengths)

    def one(key: Any) -> Array:
        latent = draw(gaussian, key)
        distance = (latent - gaussian.mean) ** 2 * jnp.exp(-gaussian.spread) + gaussian.spread
        ratio = 0.5 * jnp.sum(distance - latent**2, axis=1)  # log p(z) - log q(z | text)
        return likelihood(params, config, tokens, lengths, latent) + ratio

    weights = jax.lax.map(one, jax.random.split(key, samples))
    return jax.nn.logsumexp(weights, axis=0) - jnp.log(samples)


class Terms(NamedTuple):
    """Means over texts, in nats, and the weight of the KL term."""

    nll: Float[Array, ""]
    divergence: Float[Array, ""]
    weight: Float[Array, ""]


def loss(
    params: Params,
    config: VAE,
    fit: Fit,
    tokens: Ids,
    lengths: Count,
    key: PRNGKeyArray,
    step: Any,
) -> tuple[Float[Array, ""], Terms]:
    """Return (loss at a step, its terms), per text."""
    drawing, hiding = jax.random.split(key)
    gaussian = posterior(params, config, tokens, lengths)
    hidden = jax.random.bernoulli(hiding, fit.hide, tokens.shape).astype(jnp.float32)
    latent = draw(gaussian, drawing)
    nll = -likelihood(params, config, tokens, lengths, latent, hidden=hidden).mean()
    each = divergence(gaussian).mean(axis=0)
    weight = fit.weight(step)
    total = nll + weight * jnp.sum(jnp.maximum(each, fit.free))
    return total, Terms(nll, each.sum(), jnp.asarray(weight, jnp.float32))


def train(
    config: VAE, tokens: np.ndarray, lengths: np.ndarray, fit: Fit, *, seed: int
) -> tuple[Params, list[Terms]]:
    """Return (params, the terms of each step) learned from texts.

    tokens: [N, T] texts with their eos, padded on the right; lengths: [N]. Raises DataError for no
    texts, lengths or ids out of range, or a text longer than the context.
    """
    if not len(tokens):
        raise DataError("there are no texts to learn from; give some")
    check_rows(tokens, lengths, config.model.V)
    if tokens.shape[1] > config.model.context:
        raise DataError(
            f"texts of {tokens.shape[1]} tokens exceed context={config.model.context}; cut them"
        )
    key, optimizer = jax.random.key(seed), optax.adam(fit.rate)
    params = init(config, jax.random.fold_in(key, 0))
    state, rng, history = optimizer.init(params), np.random.default_rng(seed), []
    for step in range(fit.steps):
        rows = rng.integers(0, len(tokens), fit.batch)
        inputs = np.asarray(tokens)[rows], np.asarray(lengths)[rows]
        draws = jax.random.fold_in(key, step + 1)
        params, state, terms = _step(config, fit, optimizer, params, state, *inputs, draws, step)
        history.append(terms)
    return params, [Terms(*map(float, terms)) for terms in history]  # pyright: ignore[reportArgumentType]


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(config, fit, optimizer, params, state, tokens, lengths, key, step):
    grads, terms = jax.grad(loss, has_aux=True)(params, config, fit, tokens, lengths, key, step)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, terms


def begin(
    params: Params, config: VAE, latent: Float[Array, "B Z"], capacity: int
) -> tuple[Int[Array, "B"], Cache]:
    """Return (first, cache): the decoder's start id, and a cache that holds the latent's memory."""
    latent_memory = memory(params, config, latent)
    first = jnp.full((latent.shape[0], 1), config.start, jnp.int32)
    cache = api.empty_cache(config.model, len(first), capacity, memory=config.slots)
    cache = api.hidden(
        params["model"], config.model, first, cache=cache, memory=latent_memory
    ).cache
    assert cache is not None
    return first[:, 0], cache.rewind(jnp.zeros(len(first), jnp.int32))


def step(params: Params, config: VAE) -> Callable[..., tuple[Array, Cache]]:
    """Return the decoder as a decoding step: (tokens [B], cache) -> (logits [B, V], cache)."""

    def run(tokens: Any, cache: Cache) -> tuple[Array, Cache]:
        out = api.apply(params["model"], config.model, tokens[:, None], cache=cache)
        assert out.logits is not None and out.cache is not None
        return out.logits[:, 0], out.cache

    return run


def _real(tokens: Any, lengths: Any) -> Array:
    return jnp.arange(tokens.shape[1]) < jnp.asarray(lengths)[:, None]
