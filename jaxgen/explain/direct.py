"""Direct logit attribution: a logit as the exact sum of what was added to the residual stream."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.explain.layers import check_attention
from jaxgen.models import api
from jaxgen.nn.stack import layer_params, layer_taps
from jaxgen.ops.contract import contract
from jaxgen.ops.memory import Memory

Ids = Integer[Array | np.ndarray, "B T"]


class DirectLogits(NamedTuple):
    """The parts of R logits; the last norm divides by what it divides the whole stream by.

    embedded: [R]; heads: [L, R, N] of attention, those of cross attention added; feed: [L, R];
    neurons: [L, R, F] of which feed is made, None with experts; bias: [R], what no head and no
    layer adds: biases of attention, of the last norm and of the output. logit: [R], before a soft
    cap.
    """

    embedded: Float[Array, "R"]
    heads: Float[Array, "Layers R N"]
    feed: Float[Array, "Layers R"]
    bias: Float[Array, "R"]
    logit: Float[Array, "R"]
    neurons: Float[Array, "Layers R F"] | None = None

    @property
    def total(self) -> Float[Array, "R"]:
        """Return the sum of all parts."""
        return self.embedded + self.heads.sum((0, 2)) + self.feed.sum(0) + self.bias


def direct_logits(
    params: api.Params,
    config: ModelConfig,
    tokens: Ids,
    positions: Int[Array | np.ndarray, "R"],
    targets: Int[Array | np.ndarray, "R"],
    *,
    memory: Memory | None = None,
) -> DirectLogits:
    """Return the parts of the logits of targets [R] at positions [R] of the first row of tokens.

    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". Raises ConfigError for
    a model whose residual stream is no plain sum of what its layers return.
    """
    check_direct(config)
    return _direct(params, config, tokens, jnp.asarray(positions), jnp.asarray(targets), memory)


def check_direct(config: ModelConfig) -> None:
    """Raise ConfigError unless a logit is a sum of what heads and layers add."""
    check_attention(config)
    plain = {
        "norm_at": (config.norm_at, "pre"),
        "head": (config.head, "lm"),
        "head_kind": (config.head_kind, "none"),
        "residual.streams": (config.residual.streams, 1),
        "residual.gain": (config.residual.gain, "none"),
        "residual.laurel": (config.residual.laurel, None),
        "per_layer": (config.per_layer, None),
    }
    for name, (value, wanted) in plain.items():
        if value != wanted:
            raise ConfigError(
                f"{name}={value}: a logit is no sum of what heads and layers add; take a lens"
            )


@partial(jax.jit, static_argnames="config")
def _direct(params, config, tokens, positions, targets, memory) -> DirectLogits:
    wanted = ("embedded", "hidden", "*/out", "*/heads", "*_out", "*/neurons")
    wanted = wanted if not config.experts.number else wanted[:-1]
    taps = api.apply(params, config, tokens, memory=memory, taps=wanted).taps
    layers = [layer_taps(taps, config, layer) for layer in range(config.layers)]
    weights = [layer_params(params, config, layer) for layer in range(config.layers)]
    direction, bias, logit = _direction(
        params, config, layers[-1]["out"], taps["hidden"], positions, targets
    )
    gain = config.residual_scale

    def along(x: Array) -> Array:
        return gain * jnp.sum(x[0, positions].astype(jnp.float32) * direction, axis=-1)

    def through(equation: str, x: Array, w: object) -> Array:
        """Return how much each number of x [1, T, ...] adds, through a matrix that reads it."""
        own = x[:, positions]
        _, pull = jax.vjp(lambda x: contract(equation, x, w, dtype=config.compute_dtype), own)
        slope = pull(direction[None].astype(config.compute_dtype))[0]
        return gain * (own * slope)[0].astype(jnp.float32)

    heads, feeds, neurons = [], [], []
    for own, weight in zip(layers, weights, strict=True):
        head = 0.0
        for part in ("attn", "cross") if "cross" in weight else ("attn",):
            each = through("BTNH,NHD->BTD", own[f"{part}/heads"], weight[part]["o"]).sum(axis=-1)
            bias = bias + along(own[f"{part}_out"]) - each.sum(axis=-1)
            head = head + each
        heads.append(head)
        feeds.append(along(own["feed_out"]))
        if "feed/neurons" in own:
            neurons.append(through("BTF,FD->BTD", own["feed/neurons"], weight["feed"]["down"]))
    embedded = along(taps["embedded"]) / gain
    parts = (embedded, jnp.stack(heads), jnp.stack(feeds), bias, logit)
    return DirectLogits(*parts, jnp.stack(neurons) if len(neurons) == config.layers else None)


def _direction(
    params, config: ModelConfig, state, hidden, positions, targets
) -> tuple[Array, Array, Array]:
    """Return (the vector [R, D] that the stream is multiplied with, what is added, the logit)."""
    bare = config.replace(norm_at="post", logit_cap=None)  # the head alone

    def logits(y):
        return jnp.take_along_axis(api.read_out(params, bare, y)[0], targets[:, None], axis=1)[:, 0]

    y = hidden[:, positions]
    logit, pull = jax.vjp(logits, y)
    slope = pull(jnp.ones_like(logit))[0][0].astype(jnp.float32)  # each logit reads its own row
    x = state[0, positions].astype(jnp.float32)
    scale = params.get("final_norm", {}).get("scale", jnp.ones(()))
    scale = scale + 1 if config.norm == "rms_offset" else scale
    slope = slope * scale
    if config.norm == "layer":
        slope = slope - slope.mean(axis=-1, keepdims=True)
        x = x - x.mean(axis=-1, keepdims=True)
    size = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon)
    direction = slope / size
    return direction, logit - jnp.sum(state[0, positions] * direction, axis=-1), logit
