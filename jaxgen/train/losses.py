"""Objectives: pure functions of (params, config, batch, key)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen import arguments
from jaxgen.arguments import at_least, between
from jaxgen.config import ModelConfig
from jaxgen.eager import compile_once
from jaxgen.errors import ConfigError, DataError, nearest
from jaxgen.export import are_known, serializable
from jaxgen.mesh import shards
from jaxgen.mesh.explicit import auto_inside
from jaxgen.mesh.place import manual, platform
from jaxgen.models import api
from jaxgen.ops import experts
from jaxgen.ops.experts import RouterStats
from jaxgen.ops.losses import is_ignored, scale_by_weights, vocabulary_loss

Batch = Mapping[str, Any]  # arrays, or nested lists

# What a batch may hold: arrays like tokens, like targets, and like source.
TOKENS = ("tokens", "segments", "positions", "prefix")
TARGETS = ("targets", "weights")
SOURCE = ("source", "source_segments", "source_positions")
UNREAD = ("index",)  # where in its shard each row begins, for a post-mortem

# Logits that may exist at once on a device when the chunk is left to us: 2^25 float32 are 128 MiB.
# For each chunk a GPU writes down the gradient of the whole table, so it has larger ones.
LOGITS_AT_ONCE, OF_A_GPU = 2**25, 2**27


@serializable
class Loss(NamedTuple):
    """Sums over a batch, so that microbatches add up: divide by `weight` to get means.

    A loss of your own may return one, or a scalar. With weights of 1, `weight` counts tokens; else
    it is the sum of their absolute values, which cannot cancel.

    Args:
        total: scalar, what is differentiated: weighted, smoothed, with z-loss; nats.
        weight: scalar, what the total is divided by where it is not 0.
        nll: [B] plain weighted negative log-likelihood of each row; nats.
        metrics: means over the batch, by name, to be shown beside the loss.

    >>> jaxgen.Loss(total=6.0, weight=2.0, nll=[4.0, 2.0]).total
    6.0
    """

    total: Float[Array, ""]  # what is differentiated: weighted, smoothed, with z-loss; nats
    weight: Float[Array, ""]  # what the total is divided by where it is not 0
    nll: Float[Array, "B"]  # plain weighted negative log-likelihood of each row; nats
    metrics: dict[str, Array] = {}  # noqa: RUF012  means over the batch, to be shown beside it


@arguments.checked(
    params=api.fits, smoothing=between(0, 1, below=True), z=at_least(0), chunk=at_least(1)
)
def causal_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    smoothing: float = 0.0,
    z: float = 0.0,
    chunk: int | None = None,
) -> Loss:
    """Return the Loss of what each position predicts: a token, or the class of the whole row.

    `total` and `nll` are exact to differentiate with respect to params and weights.

    Args:
        params: of the model.
        config: of the model; static under jit.
        batch: tokens [B, T], and targets [B, T] or, for classes, [B, 1], of which -100 and
            -1 count for nothing; optional are weights like targets, of either sign, and segments,
            positions and prefix [B, T]. The prefix is read with prompt=both alone. Positions rise
            by one from token to token of a segment, as packing makes them. An encoder-decoder also
            reads source [B, S], with source_segments and source_positions. `index` is not read.
        key: turns dropout on.
        smoothing: part of each target that is spread over the vocabulary, in [0, 1).
        z: weight of logsumexp(logits)^2, 0 or more. A config with experts has weights of its own
            for the losses of its router, which are means over the tokens of the batch (or
            microbatch) and all layers.
        chunk: positions whose logits exist at once; None sizes it by memory.

    Raises:
        ConfigError: for a key of the batch that is missing, unknown, or of another shape.
        DataError: for an id outside the vocabulary, where values are known; under jit they are not,
            and the loss of such a target is NaN, and its gradient.

    >>> config = jaxgen.ModelConfig(vocab_size=16, context=8, layers=2, d_model=8, heads=2)
    >>> params = jaxgen.init(config, jax.random.key(0))
    >>> batch = {"tokens": jnp.array([[1, 2, 3]]), "targets": jnp.array([[2, 3, -100]])}
    >>> float(jaxgen.causal_loss(params, config, batch).weight)
    2.0
    """
    arrays = checked_batch(batch, config)
    return _loss(params, config, arrays, key, smoothing=smoothing, z=z, chunk=chunk)


@compile_once
@auto_inside("arrays")
def _loss(params, config, arrays, key, *, smoothing, z, chunk):
    targets = arrays["targets"]
    weights, loud = target_weights(arrays, config)
    out = read(params, config, arrays, key)
    each = targets.shape[0] * (config.classes or config.V)
    fitting = targets.shape[1] if are_known(targets.shape[1]) else 1
    if are_known(each):
        fitting = positions_at_once(each)
    total, nll = vocabulary_loss(
        out.features,
        out.table,
        targets,
        loud,
        cap=config.logit_cap if config.classes is None else None,
        smoothing=smoothing,
        z=z,
        chunk=chunk or fitting,
        dtype=config.compute_dtype,
    )
    rows: Any = jnp.sum(scale_by_weights(nll, loud), axis=1)
    weight = jnp.sum(jnp.abs(weights))
    if out.router is None:
        return Loss(total, weight, rows)
    more, metrics = _of_router(config, out.router)
    return Loss(total + weight * more, weight, rows, metrics)


def target_weights(arrays: Mapping[str, Array], config: ModelConfig) -> tuple[Array, Array]:
    """Return the weights of a batch's targets, as they count, and NaN where an id can't be."""
    targets, weights = arrays["targets"], arrays.get("weights")
    weights = jnp.ones(targets.shape, jnp.float32) if weights is None else weights
    weights = jnp.where(is_ignored(targets), 0.0, weights.astype(jnp.float32))
    # Under jit ids are not known: one outside makes its loss NaN, and must its gradient too.
    outside = (targets < 0) | (targets >= (config.classes or config.V))
    return weights, jnp.where(outside & (weights != 0), jnp.nan, weights)


def _of_router(config: ModelConfig, stats: RouterStats) -> tuple[Array, dict[str, Array]]:
    """Return what the router adds to the mean loss, and its metrics."""
    if axes := tuple(axis for axis, size in manual().items() if size > 1):
        stats = jax.lax.psum(stats, axes)  # of all devices' rows: the losses are no sums
    balance, z = (
        experts.balance_loss(stats, config.experts.balance_over),
        experts.router_z_loss(stats),
    )
    load = stats.chosen / jnp.maximum(jnp.mean(stats.chosen, axis=-1, keepdims=True), 1)
    metrics = {"router_balance": balance, "router_z": z, "router_busiest": jnp.max(load)}
    more = config.experts.balance * balance + config.experts.z * z
    return more, jax.tree.map(jax.lax.stop_gradient, metrics)


def rows_of(batch: Any) -> int:
    """Return how many rows the arrays of a batch have; ConfigError if they don't agree."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    counts = {shape[0] for shape in shapes if shape}
    if len(counts) > 1:
        raise ConfigError(
            f"the arrays of the batch have {' and '.join(map(str, sorted(counts)))} rows; they "
            f"must have equally many"
        )
    return counts.pop() if counts else 1


def as_loss(result: Any, batch: Any) -> Loss:
    """Return what a loss function has returned as a Loss.

    That is a Loss, or a scalar, which is taken for the mean over the rows of the batch; or a pair
    of either and a dict of arrays, means over the batch too, which become metrics of the step.
    Raises ConfigError for anything else.
    """
    wants = "a loss returns a scalar, a jaxgen.Loss, or a pair of one of them and a dict of arrays"
    metrics: Any = {}
    if type(result) is tuple:
        if len(result) != 2:
            raise ConfigError(f"the loss returned a tuple of {len(result)}; {wants}")
        result, metrics = result
    if not isinstance(result, Loss):
        if not hasattr(result, "dtype") and not isinstance(result, float):
            raise ConfigError(f"the loss returned a {type(result).__name__}; {wants}")
        mean = jnp.asarray(result)
        if mean.shape or not jnp.issubdtype(mean.dtype, jnp.floating):
            raise ConfigError(f"the loss returned {mean.dtype}{list(mean.shape)}; {wants}")
        rows = rows_of(batch)
        mean = mean.astype(jnp.promote_types(mean.dtype, jnp.float32))
        result = Loss(rows * mean, jnp.full((), rows, mean.dtype), jnp.full(rows, mean))
    parts = [("total", result.total, 0), ("weight", result.weight, 0), ("nll", result.nll, 1)]
    arrays = {name: jnp.asarray(value) for name, value, _ in parts}
    for name, _, axes in parts:
        found = arrays[name]
        if found.ndim != axes or (
            name == "total" and not jnp.issubdtype(found.dtype, jnp.floating)
        ):
            expected = "floats [B], one of each row" if axes else "one float"
            raise ConfigError(
                f"Loss.{name} is {found.dtype}{list(found.shape)}; it wants {expected}"
            )
        arrays[name] = found.astype(jnp.promote_types(found.dtype, jnp.float32))
    if not isinstance(metrics, Mapping) or not isinstance(result.metrics, Mapping):
        raise ConfigError(f"the loss returned a {type(metrics).__name__} beside its value; {wants}")
    shown = {**result.metrics, **metrics}
    for name, value in shown.items():
        if not hasattr(value, "dtype") and not isinstance(value, int | float):
            raise ConfigError(f"the loss returned {name!r}={value!r} beside its value; {wants}")
    means = {name: jnp.asarray(value, jnp.float32) for name, value in shown.items()}
    return Loss(**arrays, metrics=means)


# What others call the keys of a batch.
_MEANT = {
    "input_ids": " (did you mean 'tokens'?)",
    "label": " (did you mean 'targets'?)",
    "labels": " (did you mean 'targets'? tokens[:, t] predicts targets[:, t]: shift them by one)",
    "attention_mask": " (did you mean 'segments'? 1 for a document, 0 for padding)",
}


def checked_batch(batch: Batch, config: ModelConfig) -> dict[str, Array]:
    """Return the arrays that the loss reads, none misspelt, missing or of another shape."""
    if not isinstance(batch, Mapping):
        raise ConfigError(f"batch is a {type(batch).__name__}; it wants a dict of arrays")
    towers = config.topology == "encoder_decoder"
    known = (*TOKENS, *TARGETS, *(SOURCE if towers else ()), *UNREAD)
    for name in batch:
        if name not in known:
            why = f": topology={config.topology} reads no source" if name in SOURCE else ""
            hint = why or _MEANT.get(name) or nearest(str(name), known)
            raise ConfigError(f"batch has an unknown key {name!r}{hint}; known: {', '.join(known)}")
    needed = ("tokens", "targets", "source") if towers else ("tokens", "targets")
    for name in needed:
        if name not in batch:
            raise ConfigError(f"batch has no {name!r}, only {', '.join(batch) or 'nothing'}")
    arrays = {name: jnp.asarray(value) for name, value in batch.items() if name not in UNREAD}
    rows, *width = arrays["tokens"].shape
    shapes = {
        TOKENS: (rows, *width),
        TARGETS: (rows, *width) if config.classes is None else (rows, 1),
        SOURCE: (rows, *arrays["source"].shape[1:]) if towers else (),
    }
    for names, shape in shapes.items():
        for name in (name for name in names if name in arrays):
            array, numbers = arrays[name], jnp.integer
            if array.shape != shape or array.ndim != 2:
                expected = list(shape) if len(shape) == 2 else "two axes, of rows and positions"
                raise ConfigError(f"batch[{name!r}] is {list(array.shape)}; it wants {expected}")
            if name == "prefix" or name == "weights":
                numbers = jnp.bool if array.dtype == bool else jnp.number
            if not jnp.issubdtype(array.dtype, numbers):
                raise ConfigError(f"batch[{name!r}] holds {array.dtype}; it wants integers")
    for name in needed:
        _check_ids(name, batch[name], config)
    return arrays


def _check_ids(name: str, value: Any, config: ModelConfig) -> None:
    """Raise DataError for an id that is known here and does not exist."""
    if isinstance(value, Tracer) or (
        isinstance(value, jax.Array) and not value.is_fully_addressable
    ):
        return
    ids, classes = np.asarray(value), config.classes if name == "targets" else None
    size, what = (config.V, "vocabulary") if classes is None else (classes, "classes")
    wrong = (ids < 0) | (ids >= size)
    if name == "targets":
        wrong &= ~is_ignored(ids)
    if wrong.any():
        row, col = (int(i) for i in np.argwhere(wrong)[0])
        more = "; -100 and -1 count for nothing" if name == "targets" else ""
        raise DataError(
            f"batch[{name!r}][{row}, {col}]={ids[row, col]} is not in the {what}: ids are 0 to "
            f"{size - 1}{more}"
        )


def logits_at_once(platform: str) -> int:
    """Return how many logits may exist at once on a device of a platform."""
    return OF_A_GPU if platform == "gpu" else LOGITS_AT_ONCE


def positions_at_once(logits: int) -> int:
    """Return how many positions of all rows fit; logits: of one position of all rows."""
    return max(logits_at_once(platform()) * shards("BTV") // logits, 1)


def read(
    params: api.Params,
    config: ModelConfig,
    batch: dict[str, Array],
    key: PRNGKeyArray | None,
    taps: tuple[str, ...] = (),
) -> api.Hidden:
    """Return what the model makes of a batch, up to the logits."""
    memory = None
    encoder_key, decoder_key = (None, None) if key is None else jax.random.split(key)
    if config.topology == "encoder_decoder":
        memory = api.encode(
            params,
            config,
            batch["source"],
            positions=batch.get("source_positions"),
            segments=batch.get("source_segments"),
            order="running",
            key=encoder_key,
        )
    return api.hidden(
        params,
        config,
        batch["tokens"],
        positions=batch.get("positions"),
        segments=batch.get("segments"),
        memory=memory,
        prefix=batch.get("prefix") if config.prompt == "both" else None,
        order="running",
        taps=taps,
        key=key if memory is None else decoder_key,
    )
