"""Attention as attribution: rollout of the heads' mean, or of the values that heads move.

Of an encoder-decoder all rows and columns are the tokens of the source, then the decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.explain.layers import check_attention, head_outputs
from jaxgen.models import api
from jaxgen.nn.stack import layer_params, layer_taps

Weighing = Literal["probs", "values"]
Ids = Integer[Array | np.ndarray, "B T"]


class AttentionMap(NamedTuple):
    """Of one layer, how much each query takes of each key, head by head [B, N, T, S].

    part: whose: "encoder", "attn" (of the only tower, or the decoder's own) or "cross".
    """

    part: Literal["encoder", "attn", "cross"]
    layer: int
    heads: Float[Array, "B N T S"]


def attention_maps(
    params: api.Params,
    config: ModelConfig,
    tokens: Ids,
    *,
    source: Integer[Array | np.ndarray, "B S"] | None = None,
    weigh: Weighing = "probs",
) -> list[AttentionMap]:
    """Return what all layers attend to, in the order of the depth.

    Args:
        params: of the model.
        config: of the model; its layers have attention.
        tokens: ids [B, T].
        source: ids [B, S] for the encoder of an encoder-decoder.
        weigh: "probs" are the attention probabilities; "values" multiplies each with the norm of
            the vector that the head adds for it: its value times the matrix `o` (Kobayashi et al.
            2020).

    Returns:
        AttentionMaps. Raises ConfigError for a layer without attention.
    """
    check_attention(config)
    if weigh == "values" and config.latent is not None:
        raise ConfigError("weigh=values with latent attention: its values are no taps; take probs")
    encoded, decoded = _heads(params, config, tokens, source, weigh)
    maps = [AttentionMap("encoder", layer, own["attn"]) for layer, own in enumerate(encoded)]
    return maps + [
        AttentionMap(part, layer, heads)
        for layer, own in enumerate(decoded)
        for part, heads in own.items()
    ]


def rollout(maps: Sequence[AttentionMap]) -> Float[Array, "B T S"]:
    """Return how much of each token is in each last state: half of it stays at each attention.

    Abnar and Zuidema 2020, with the mean of the heads. Rows sum to 1.
    """
    return _rollout([one.heads for one in maps], tuple(one.part for one in maps))


@partial(jax.jit, static_argnames="parts")
def _rollout(maps: list[Array], parts: tuple[str, ...]) -> Array:
    num_source = maps[0].shape[-1] if parts[0] == "encoder" else 0
    size = num_source + maps[-1].shape[-2]
    eye = jnp.eye(size)
    total = jnp.broadcast_to(eye, (maps[0].shape[0], size, size))
    for part, heads in zip(parts, maps, strict=True):
        mean = heads.mean(axis=1)
        mean = mean / jnp.maximum(mean.sum(axis=-1, keepdims=True), 1e-30)
        rows = slice(0, num_source) if part == "encoder" else slice(num_source, size)
        columns = slice(num_source, size) if part == "attn" else slice(0, num_source)
        mixed = 0.5 * eye[rows] @ total + 0.5 * mean @ total[:, columns]
        total = total.at[:, rows].set(mixed)
    return total


Heads = dict[str, Array]  # of a layer, [B, N, T, S] by part


@partial(jax.jit, static_argnames=("config", "weigh"))
def _heads(
    params: Any, config: ModelConfig, tokens: Any, source: Any, weigh: Weighing
) -> tuple[list[Heads], list[Heads]]:
    """Return what the layers of the encoder, if any, and those of the decoder attend to."""
    taps = ("*/probs", "*/values") if weigh == "values" else ("*/probs",)
    memory, encoded, parts = None, [], ("attn",)
    if config.topology == "encoder_decoder":
        memory, parts = api.encode(params, config, source, taps=taps), ("attn", "cross")
        own = {path.removeprefix("encoder/"): one for path, one in memory.taps.items()}
        encoded = _tower(params["encoder"], config.encoder(), own, ("attn",), weigh)
    taps = api.apply(params, config, tokens, memory=memory, taps=taps).taps
    return encoded, _tower(params, config, taps, parts, weigh)


def _tower(
    params: Any, config: ModelConfig, taps: dict[str, Array], parts: Sequence[str], weigh: Weighing
) -> list[Heads]:
    layers = []
    for layer in range(config.layers):
        own, taken = layer_params(params, config, layer), layer_taps(taps, config, layer)
        maps = {part: taken[f"{part}/probs"] for part in parts}
        if weigh == "values":
            for part in parts:
                values = taken[f"{part}/values"]
                values = jnp.repeat(values, config.heads // values.shape[2], axis=2)
                moved = head_outputs(config, own[part]["o"], values)  # [N, B, S, D]
                norms = jnp.linalg.norm(moved.astype(jnp.float32), axis=-1)
                maps[part] = maps[part] * norms.transpose(1, 0, 2)[:, :, None]
        layers.append(maps)
    return layers
