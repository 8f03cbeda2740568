"""Logit lens and tuned lens: what the states behind each layer would say as the last ones."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.explain.layers import stack_taps
from jaxgen.models import api
from jaxgen.ops.memory import Memory

Ids = Integer[Array | np.ndarray, "B T"]
Translators = dict[str, Array]  # "matrix" [L, D, D] and "bias" [L, D], added to states


class Lens(NamedTuple):
    """What the states behind 0, 1, ... L layers say at R positions; 0 is the embedding.

    ids, logprobs: [L + 1, R, K], the likeliest tokens; target: [L + 1, R], the log-probability of
    the target, and rank: its rank, from 1.
    """

    ids: Int[Array, "Layers R K"]
    logprobs: Float[Array, "Layers R K"]
    target: Float[Array, "Layers R"]
    rank: Int[Array, "Layers R"]


def layer_states(
    params: api.Params, config: ModelConfig, tokens: Ids, *, memory: Memory | None = None
) -> Float[Array, "Layers B T D"]:
    """Return the residual stream behind 0, 1, ... L layers."""
    if config.residual.streams > 1:
        raise ConfigError(f"residual.streams={config.residual.streams}: there is no one stream")
    taps = api.apply(params, config, tokens, memory=memory, taps=("embedded", "*/out")).taps
    return jnp.concatenate([taps["embedded"][None], stack_taps(taps, config, "out")])


def lens_logits(
    params: api.Params,
    config: ModelConfig,
    states: Float[Array, "Layers B T D"],
    translators: Translators | None = None,
) -> Float[Array, "Layers B T V"]:
    """Return the logits of the states behind each layer (nostalgebraist 2020).

    translators: of `fit_tuned_lens` (Belrose et al. 2023), which the last layer has none of. The
    logits of the last layer are the model's, bit for bit.
    """
    return lax.map(partial(api.read_out, params, config), _tuned(states, translators))


@partial(jax.jit, static_argnames=("config", "top"))
def logit_lens(
    params: api.Params,
    config: ModelConfig,
    tokens: Ids,
    positions: Int[Array | np.ndarray, "R"],
    targets: Int[Array | np.ndarray, "R"],
    *,
    memory: Memory | None = None,
    translators: Translators | None = None,
    top: int = 5,
) -> Lens:
    """Return what the layers say of the first row of tokens, at the states of R positions.

    Args:
        params, config: of the model, which gives token logits.
        tokens: ids [1, T].
        positions: [R] of states, from 0.
        targets: [R] ids whose log-probability and rank are followed.
        memory: of an encoder-decoder.
        translators: None for the logit lens, those of `fit_tuned_lens` for the tuned one.
        top: likeliest tokens to return, K.
    """
    states = layer_states(params, config, tokens, memory=memory)[:, :1, positions]

    def read(state: Array) -> tuple[Array, ...]:
        logits = api.read_out(params, config, state)[0].astype(jnp.float32)
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        target = jnp.take_along_axis(logprobs, jnp.asarray(targets)[:, None], axis=-1)
        best, ids = lax.top_k(logprobs, top)
        return ids, best, target[:, 0], 1 + jnp.sum(logprobs > target, axis=-1)

    return Lens(*lax.map(read, _tuned(states, translators)))


def fit_tuned_lens(
    params: api.Params,
    config: ModelConfig,
    batches: Iterable[Ids],
    *,
    learning_rate: float = 1e-3,
) -> tuple[Translators, Float[np.ndarray, "Steps"]]:
    """Return (translators, losses): affine maps of each layer's states, one step of Adam a batch.

    The loss is the divergence of the lens from the model's own distribution, summed over layers
    (Belrose et al. 2023). Raises ConfigError without a batch.
    """
    width, layers = config.d_model, config.layers
    lens: Translators = {
        "matrix": jnp.zeros((layers, width, width)),
        "bias": jnp.zeros((layers, width)),
    }
    optimizer = optax.adam(learning_rate)
    state, losses = optimizer.init(lens), []

    @jax.jit
    def step(lens, state, params, tokens):
        loss, slope = jax.value_and_grad(partial(lens_loss, params, config, tokens))(lens)
        changes, state = optimizer.update(slope, state, lens)
        return optax.apply_updates(lens, changes), state, loss

    for tokens in batches:
        lens, state, loss = step(lens, state, params, jnp.asarray(tokens))
        losses.append(float(loss))
    if not losses:
        raise ConfigError("batches is empty; give token ids [B, T] to fit a tuned lens on")
    return lens, np.asarray(losses)


def lens_loss(
    params: api.Params, config: ModelConfig, tokens: Ids, translators: Translators
) -> Float[Array, ""]:
    """Return the divergence of all layers' lenses from the model, in nats a token."""
    states = layer_states(params, config, tokens)
    own = jax.nn.log_softmax(api.read_out(params, config, states[-1]).astype(jnp.float32))

    def one(args: Any) -> Array:
        logits = api.read_out(params, config, _translated(*args)).astype(jnp.float32)
        return jnp.mean(jnp.sum(jnp.exp(own) * (own - jax.nn.log_softmax(logits)), axis=-1))

    return jnp.sum(lax.map(jax.checkpoint(one), (translators, states[:-1])))


def _tuned(states: Float[Array, "Layers B T D"], translators: Translators | None) -> Array:
    """Return states as translators, if any, make them; those of the last layer stay."""
    if translators is None:
        return states
    return states.at[:-1].set(_translated(translators, states[:-1]))


def _translated(translators: Translators, states: Float[Array, "... D"]) -> Array:
    matrix, bias = translators["matrix"], translators["bias"]
    added = states @ (matrix if matrix.ndim < 3 else matrix[:, None])
    return states + added + (bias if bias.ndim < 2 else bias[:, None, None])
