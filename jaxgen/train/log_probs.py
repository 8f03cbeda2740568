"""Log-probabilities of the texts of a batch, two or more a row, and how far models lie apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.models import api
from jaxgen.ops.losses import unembed, vocabulary_loss
from jaxgen.train.losses import Batch, positions_at_once, read

TEXTS = ("tokens", "targets", "segments", "positions", "weights")


def token_nll(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    chunk: int | None = None,
    temperature: float = 1.0,
) -> Float[Array, "B S T"]:
    """Return the negative log-likelihood of each target of a batch of [B, S, T]; nats.

    Targets whose weight is 0 have one as well. chunk: as of `causal_loss`. temperature: what logits
    are divided by.
    """
    rows = texts_as_rows(batch)
    out = read(params, config, rows, key)
    ones = jnp.ones(rows["targets"].shape, jnp.float32)
    cap, features = config.logit_cap, out.features
    if temperature != 1.0:  # cap tanh(x / cap) / t is c tanh((x / t) / c) with c = cap / t
        cap, features = cap and cap / temperature, features / temperature
    _, nll = vocabulary_loss(
        *(features, out.table, rows["targets"], ones),
        cap=cap,
        smoothing=0.0,
        z=0.0,
        chunk=chunk or positions_at_once(rows["tokens"].shape[0] * config.V),
        dtype=config.compute_dtype,
    )
    return nll.reshape(batch["tokens"].shape)


def texts_as_rows(batch: Batch) -> dict[str, Array]:
    """Return the texts of a batch [B, S, T] as rows of their own."""
    length = batch["tokens"].shape[-1]
    return {name: jnp.asarray(batch[name]).reshape(-1, length) for name in TEXTS}


def completion_logps(
    params: api.Params, config: ModelConfig, batch: Batch, *, chunk: int | None = None
) -> Float[Array, "B S"]:
    """Return the log-probability of what is judged of each text, as a reference model gives it."""
    nll = token_nll(params, config, batch, chunk=chunk)
    return -jnp.sum(nll * batch["weights"], axis=-1)


def mean_kl(
    params: api.Params,
    reference: api.Params,
    config: ModelConfig,
    batch: Batch,
    *,
    chunk: int | None = None,
) -> Float[Array, "B"]:
    """Return the mean divergence KL(model || reference) over what is judged of a row; nats a token.

    Exact over the vocabulary, behind each token of the texts of a batch [B, S, T]; two forward
    passes. chunk: positions whose logits exist at once; None sizes it by memory.
    """
    rows = texts_as_rows(batch)
    outs = [read(one, config, rows, None) for one in (params, reference)]

    def divergence(features: tuple[Array, Array]) -> Array:
        own, other = (
            jax.nn.log_softmax(
                unembed(x[:, None], out.table, cap=config.logit_cap, dtype=config.compute_dtype)
            )
            for x, out in zip(features, outs, strict=True)
        )
        return jnp.sum(jnp.exp(own) * (own - other), axis=-1)[:, 0]

    by_position = tuple(out.features.swapaxes(0, 1) for out in outs)
    chunk = chunk or positions_at_once(rows["tokens"].shape[0] * config.V)
    each = jax.lax.map(
        divergence, by_position, batch_size=min(max(chunk // 2, 1), len(by_position[0]))
    )
    weights = batch["weights"]
    each = each.swapaxes(0, 1).reshape(weights.shape) * weights
    return each.sum((1, 2)) / jnp.maximum(weights.sum((1, 2)), 1)
