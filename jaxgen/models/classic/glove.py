"""GloVe (Pennington et al. 2014): vectors whose products are the logarithms of co-occurrences.

Params: in, near [V, D] and in_bias, near_bias [V]; the word vectors are in + near.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen import arguments
from jaxgen.errors import ConfigError, DataError
from jaxgen.models.classic.documents import check_documents

Params = dict[str, Array]


@arguments.checked
@dataclass(frozen=True, kw_only=True)
class GloVe:
    """Sizes and weighting of GloVe; raises ConfigError naming the field at fault.

    window: words on either side. most, power: a pair seen n times weighs min(n / most, 1) ** power
    (the paper: 100 and 0.75).
    """

    vocab_size: int
    width: int
    window: int
    most: float
    power: float

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("most", "power"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be greater than 0")


class Pairs(NamedTuple):
    """Words that occur near each other and how often, a pair at distance d counting 1 / d."""

    word: Int[Array | np.ndarray, "N"]
    near: Int[Array | np.ndarray, "N"]
    times: Float[Array | np.ndarray, "N"]


def cooccurrences(config: GloVe, tokens: np.ndarray, offsets: np.ndarray) -> Pairs:
    """Return the pairs of words at most `window` apart in one document, in both directions.

    Raises DataError if there are none, or for ids outside the vocabulary.
    """
    ids, offsets = check_documents(tokens, offsets, config.vocab_size)
    document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys, weights = [np.empty(0, np.int64)], [np.empty(0)]
    for d in range(1, config.window + 1):
        same = document[d:] == document[:-d]
        a, b = ids[:-d][same], ids[d:][same]
        keys += [a * config.vocab_size + b, b * config.vocab_size + a]
        weights += [np.full(2 * len(a), 1 / d)]
    unique_keys, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    if not len(unique_keys):
        raise DataError(f"{len(ids)} tokens hold no pair of words; give more text")
    count = np.bincount(inverse, weights=np.concatenate(weights))
    words, near = unique_keys // config.vocab_size, unique_keys % config.vocab_size
    return Pairs(words.astype(np.int32), near.astype(np.int32), count.astype(np.float32))


def init(config: GloVe, key: PRNGKeyArray) -> Params:
    """Return fresh params: uniform draws within 0.5 / width."""
    half, keys = 0.5 / config.width, jax.random.split(key, 4)
    shape = (config.vocab_size, config.width)
    shapes = {"in": shape, "near": shape, "in_bias": shape[:1], "near_bias": shape[:1]}
    return {
        name: jax.random.uniform(k, one, minval=-half, maxval=half)
        for (name, one), k in zip(shapes.items(), keys, strict=True)
    }


def loss(params: Params, config: GloVe, pairs: Pairs) -> Float[Array, ""]:
    """Return the weighted squared error of log counts, summed over pairs."""
    word, near, count = (jnp.asarray(x) for x in pairs)
    log_count = jnp.sum(params["in"][word] * params["near"][near], axis=-1)
    log_count += params["in_bias"][word] + params["near_bias"][near]
    weight = jnp.minimum(count / config.most, 1.0) ** config.power
    return jnp.sum(weight * (log_count - jnp.log(jnp.maximum(count, 1e-10))) ** 2)


def train(
    config: GloVe, pairs: Pairs, *, passes: int, batch: int, rate: float, seed: int
) -> tuple[Params, list[float]]:
    """Return (params, loss per pair of each pass), fitted by AdaGrad as the paper does."""
    optimizer = optax.adagrad(rate, initial_accumulator_value=1.0)
    key = jax.random.key(seed)
    params = init(config, key)
    state, history, rng = optimizer.init(params), [], np.random.default_rng(seed)
    number = len(pairs.times)
    size = min(batch, number)
    steps = number // size
    for _ in range(passes):
        # Pairs beyond the last full batch are left to other passes, which shuffle anew.
        order = rng.permutation(number)[: steps * size].reshape(steps, size)
        part = jax.tree.map(lambda x, order=order: np.asarray(x)[order], pairs)
        params, state, value = _train_pass(config, optimizer, params, state, part)
        history.append(float(value) / (steps * size))
    return params, history


@partial(jax.jit, static_argnames=("config", "optimizer"), donate_argnames=("params", "state"))
def _train_pass(config: GloVe, optimizer: Any, params, state, batches: Pairs):
    def one(carry, batch):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params, config, batch)
        updates, state = optimizer.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, state), values = lax.scan(one, (params, state), batches)
    return params, state, jnp.sum(values)


def vectors(params: Params) -> Float[np.ndarray, "V D"]:
    """Return the word vectors: the sum of each word's two roles."""
    return np.asarray(params["in"] + params["near"])
