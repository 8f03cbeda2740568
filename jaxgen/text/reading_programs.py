"""Jitted programs that read texts once: classes, spans, vectors, probabilities of targets."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgen.config import ModelConfig
from jaxgen.models import api
from jaxgen.pretrained.generation_config import ProblemType
from jaxgen.pretrained.pooling import Mode


@partial(jax.jit, static_argnames=("config", "start", "problem_type"))
def class_scores(
    params,
    config: ModelConfig,
    tokens,
    segments,
    types,
    start: int | None,
    problem_type: ProblemType | None,
) -> Float[Array, "B C"]:
    """Return the probability of each class, or the values of a regression.

    Classes exclude one another, unless the problem_type says otherwise or there is but one. An
    encoder-decoder reads a text with its encoder, and again after `start` with its decoder.
    """
    logits = _class_logits(params, config, tokens, segments, start, types=types)
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or config.classes == 1:
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits)


@partial(jax.jit, static_argnames=("config", "start"))
def token_probabilities(
    params, config: ModelConfig, tokens, segments, start: int | None = None
) -> Float[Array, "B T V"]:
    """Return the probability of each id, or class, at each place; start: see `class_scores`."""
    return jax.nn.softmax(_class_logits(params, config, tokens, segments, start))


def _class_logits(
    params, config: ModelConfig, tokens, segments, start: int | None, **more: Any
) -> Float[Array, "..."]:
    memory, read = None, tokens
    if config.topology == "encoder_decoder":
        assert start is not None
        memory = api.encode(params, config, tokens, segments=segments)
        begin = jnp.full((len(tokens), 1), start, tokens.dtype)
        read = jnp.concatenate([begin, tokens[:, :-1]], axis=1)
    logits = _logits(params, config, read, segments, memory=memory, **more)
    return logits.astype(jnp.float32)


@partial(jax.jit, static_argnames="config")
def span_logits(params, config: ModelConfig, tokens, segments, types) -> Float[Array, "B T 2"]:
    """Return the logits of each place to begin and to end an answer."""
    return _logits(params, config, tokens, segments, types=types).astype(jnp.float32)


@partial(jax.jit, static_argnames=("config", "modes"))
def pooled_states(
    params, config: ModelConfig, modes: tuple[Mode, ...], tokens, segments, skip
) -> Float[Array, "B P"]:
    """Return one vector of each text's last hidden states (an encoder's, where there is one).

    modes: of which each gives D of its numbers. skip: tokens of a text that are not pooled, the
    first ones.
    """
    read = api.encode if config.topology == "encoder_decoder" else api.hidden
    state = read(params, config, tokens, segments=segments).state.astype(jnp.float32)
    places = jnp.arange(state.shape[1])
    length = jnp.sum(segments > 0, axis=1, keepdims=True)
    # Of a text that is no longer than that, its last token is.
    first = jnp.minimum(skip, length - 1)
    real = ((segments > 0) & (places >= first))[..., None]

    def at(index: Array) -> Array:
        return jnp.take_along_axis(state, index[..., None], axis=1)[:, 0]

    def mean(weights: Array) -> Array:
        return jnp.sum(jnp.where(real, state, 0) * weights, axis=1) / jnp.sum(weights, axis=1)

    pooled = {
        "cls": lambda: at(first),
        "last": lambda: at(length - 1),
        "max": lambda: jnp.max(jnp.where(real, state, -jnp.inf), axis=1),
        "mean": lambda: mean(real),
        "root_mean": lambda: mean(real) * jnp.sqrt(jnp.sum(real, axis=1)),
        "weighted_mean": lambda: mean(real * (1.0 + places)[:, None]),  # the nth token weighs n
    }
    return jnp.concatenate([pooled[mode]() for mode in modes], axis=-1)


@partial(jax.jit, static_argnames="config")
def target_log_probabilities(
    params, config: ModelConfig, tokens, segments, targets
) -> tuple[Float[Array, "B T"], Array]:
    """Return the log-probability of each target [B, T], and whether it is the likeliest id."""
    logprobs = jax.nn.log_softmax(_logits(params, config, tokens, segments).astype(jnp.float32))
    own = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    return own, logprobs.argmax(axis=-1) == targets


def _logits(params, config: ModelConfig, tokens, segments, **more: Any) -> Array:
    logits = api.apply(params, config, tokens, segments=segments, **more).logits
    assert logits is not None
    return logits
