"""The hidden states of a text and the token after each: what kNN-LM looks into."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError, DataError
from jaxgen.knowledge import folder, vectors
from jaxgen.knowledge.vectors import PROBES, Rows
from jaxgen.models import api
from jaxgen.ops.losses import is_ignored
from jaxgen.pytree import register_dataclass

SAME = 1e-5  # by how much the sums of one model's parameters differ between devices, relatively
NEIGHBOURS = 64  # states that a prediction looks at
# What is tried: temperatures, by the median squared distance of the nearest; weights.
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
WEIGHTS = tuple(n / 20 for n in range(20))
QUERIES = 512  # states that are looked up at once


@register_dataclass
@dataclass(frozen=True)
class Memory:
    """Hidden states as rows that are near by Euclidean distance, and the token after each [N]."""

    rows: Rows
    tokens: Any


def build_memory(
    params: api.Params, config: ModelConfig, batches: Iterable[Mapping[str, Any]], home: str | Path
) -> int:
    """Write the hidden states of a text, with the token that follows each; return their number.

    Args:
        params, config: of a decoder.
        batches: rows of tokens with targets and weights, as training reads them.
        home: the folder to write, in the place of the memory that is there.

    Raises:
        DataError: for a text without a token to predict.
    """
    folder.check(Path(home))
    codes, scales, tokens = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for states, targets, _ in each_state(params, config, batches):
        code, scale = vectors.quantize(states)
        codes.append(code)
        scales.append(scale)
        tokens.append(targets.astype(np.int32))
    if not sum(map(len, tokens)):
        raise DataError("the text has no token to predict; give more")
    rows = vectors.arrange(np.concatenate(codes), np.concatenate(scales), euclidean=True)
    arrays = {**vectors.arrays_of(rows), "tokens": np.concatenate(tokens)}
    extra = {"longest": rows.longest, "vocab_size": config.vocab_size, "model": identify(params)}
    folder.write(Path(home), "states", arrays, extra)
    return len(arrays["tokens"])


def open_memory(home: str | os.PathLike, params: api.Params, config: ModelConfig) -> Memory:
    """Return what `build_memory` has written, on the device.

    Raises CheckpointError for what is none, ConfigError for the memory of another model.
    """
    stored = folder.read(Path(home), "states")
    sums, vocab_size = stored.extra["model"], stored.extra["vocab_size"]
    mine = identify(params)
    same = len(sums) == len(mine) and np.allclose(sums, mine, rtol=SAME, atol=0)
    if vocab_size != config.vocab_size or not same:
        raise ConfigError(f"{home} holds the states of another model; name another folder")
    rows = vectors.rows_of(stored.arrays, stored.extra["longest"])
    return Memory(rows, jnp.asarray(stored.arrays["tokens"]))


def identify(params: api.Params) -> list[float]:
    """Return numbers that tell the parameters of one model from those of another."""
    return [float(jnp.sum(jnp.abs(leaf), dtype=jnp.float32)) for leaf in jax.tree.leaves(params)]


def each_state(
    params: api.Params, config: ModelConfig, batches: Iterable[Mapping[str, Any]]
) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (states [N, D], targets [N], the model's log-probabilities of them [N]) of batches."""
    for batch in batches:
        counted = (batch["weights"] != 0) & ~np.asarray(is_ignored(batch["targets"]))
        layout = {name: batch[name] for name in ("segments", "positions") if name in batch}
        states, scores = _states(params, config, batch["tokens"], batch["targets"], layout)
        values = (states, batch["targets"], scores)
        states, targets, scores = (np.asarray(x)[counted] for x in values)
        yield states, targets, scores


@partial(jax.jit, static_argnames="config")
def _states(params, config, tokens, targets, layout) -> tuple[Array, Array]:
    out = api.apply(params, config, tokens, **layout)
    assert out.logits is not None
    logprobs = jax.nn.log_softmax(out.logits.astype(jnp.float32))
    targets = jnp.maximum(targets, 0)
    scores = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
    return out.hidden.astype(jnp.float32), scores


def neighbours(
    memory: Memory,
    states: Float[Array | np.ndarray, "Q D"],
    count: int = NEIGHBOURS,
    *,
    probes: int | None = PROBES,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Return (-squared distance, up to a number of each query; token) of the nearest states."""
    scores, ids = vectors.nearest(memory.rows, states, count, probes=probes)
    return 2 * scores, jnp.asarray(memory.tokens)[ids]


class Evidence(NamedTuple):
    """What a memory and a model say of a text's tokens.

    logprobs: the model's [N]. distances: squared, to the nearest states [N, k]. matches: whether
    the token after each is the one that comes [N, k]. targets: the tokens [N].
    """

    logprobs: np.ndarray
    distances: np.ndarray
    matches: np.ndarray
    targets: np.ndarray

    def mixed(self, temperature: float, weight: float) -> Float[np.ndarray, "N"]:
        """Return log((1 - weight) p + weight q) of each token, as `knn_step` has it."""
        scaled = -self.distances / temperature
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        q = (shares * self.matches).sum(axis=1) / shares.sum(axis=1)
        return np.log(np.maximum((1 - weight) * np.exp(self.logprobs) + weight * q, 1e-38))


def look_up(
    memory: Memory,
    params: api.Params,
    config: ModelConfig,
    batches: Iterable[Mapping[str, Any]],
    *,
    count: int = NEIGHBOURS,
    probes: int | None = PROBES,
) -> Evidence:
    """Return what a memory and its model say of a text."""
    parts = []
    for states, targets, logprobs in each_state(params, config, batches):
        for at in range(0, len(states), QUERIES):
            here = slice(at, at + QUERIES)
            query = np.zeros((QUERIES, states.shape[1]), np.float32)
            query[: len(states[here])] = states[here]
            nearness, tokens = neighbours(memory, query, count, probes=probes)
            size = len(states[here])
            squares = np.square(states[here]).sum(axis=1, keepdims=True)
            distances = np.maximum(squares - np.asarray(nearness)[:size], 0)
            matches = np.asarray(tokens)[:size] == targets[here, None]
            parts.append((logprobs[here], distances, matches, targets[here]))
    if not parts:
        raise DataError("the text has no token to predict; give more")
    return Evidence(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))


def choose(evidence: Evidence) -> tuple[float, float]:
    """Return the (temperature, weight) that predict a text best, of a grid of both."""
    unit = float(np.median(evidence.distances.min(axis=1))) or 1.0
    grid = [(unit * one, weight) for one in TEMPERATURES for weight in WEIGHTS]
    return max(grid, key=lambda pair: float(evidence.mixed(*pair).sum()))
