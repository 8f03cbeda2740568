"""Attention as attribution: rollout of the heads' mean, or of the values that heads move.

Of an encoder-decoder all rows and columns are the tokens of the source, then the decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.explain.layers import check_attention, head_outputs, layer_params, layer_taps
from jaxgen.models import api

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
    memory, maps = None, []
    taps = ("*/probs", "*/values") if weigh == "values" else ("*/probs",)
    if config.topology == "encoder_decoder":
        encoder = config.encoder()
        memory = api.encode(params, config, source, taps=taps)
        own = {path.removeprefix("encoder/"): one for path, one in memory.taps.items()}
        tower = _tower(params["encoder"], encoder, own, ("attn",), weigh)
        maps = [one._replace(part="encoder") for one in tower]
    taps = api.apply(params, config, tokens, memory=memory, taps=taps).taps
    parts = ("attn", "cross") if memory is not None else ("attn",)
    return maps + _tower(params, config, taps, parts, weigh)


def rollout(maps: Sequence[AttentionMap]) -> Float[Array, "B T S"]:
    """Return how much of each token is in each last state: half of it stays at each attention.

    Abnar and Zuidema 2020, with the mean of the heads. Rows sum to 1.
    """
    first, last = maps[0].heads, maps[-1].heads
    num_source = first.shape[-1] if maps[0].part == "encoder" else 0
    size = num_source + last.shape[-2]
    eye = jnp.eye(size)
    total = jnp.broadcast_to(eye, (first.shape[0], size, size))
    for part, _, heads in maps:
        mean = heads.mean(axis=1)
        mean = mean / jnp.maximum(mean.sum(axis=-1, keepdims=True), 1e-30)
        rows = slice(0, num_source) if part == "encoder" else slice(num_source, size)
        columns = slice(num_source, size) if part == "attn" else slice(0, num_source)
        mixed = 0.5 * eye[rows] @ total + 0.5 * mean @ total[:, columns]
        total = total.at[:, rows].set(mixed)
    return total


def _tower(
    params: Any, config: ModelConfig, taps: dict[str, Array], parts: Sequence[Any], weigh: Weighing
) -> list[AttentionMap]:
    maps = []
    for layer in range(config.layers):
        own, taken = layer_params(params, config, layer), layer_taps(taps, config, layer)
        for part in parts:
            heads = taken[f"{part}/probs"]
            if weigh == "values":
                values = taken[f"{part}/values"]
                values = jnp.repeat(values, config.heads // values.shape[2], axis=2)
                moved = head_outputs(config, own[part]["o"], values)  # [N, B, S, D]
                norms = jnp.linalg.norm(moved.astype(jnp.float32), axis=-1)
                heads = heads * norms.transpose(1, 0, 2)[:, :, None]
            maps.append(AttentionMap(part, layer, heads))
    return maps
