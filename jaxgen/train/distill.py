"""Losses by which a student learns from a teacher's probabilities (Hinton et al. 2015).

A batch holds what the teacher says: `teacher`, log-probabilities [B, T, K] at the loss's
temperature, and, of its likeliest tokens alone, `teacher_ids` [B, T, K - 1]; the last of K is then
the probability of all others together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.models import api
from jaxgen.ops.losses import cross_entropy, is_ignored, scale_by_weights, unembed
from jaxgen.train.losses import Batch, Loss, read
from jaxgen.train.settings import DistillSettings

LEAST = 1e-12  # of the probability of all other tokens, whose logarithm is taken
NAMES = ("teacher", "teacher_ids")


def log_probs(
    logits: Float[Array, "... V"], ids: Int[Array, "... I"] | None, temperature: float
) -> Float[Array, "... K"]:
    """Return log-probabilities at a temperature: of all tokens, or of `ids` and the rest."""
    all_tokens = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    if ids is None:
        return all_tokens
    some = jnp.take_along_axis(all_tokens, ids, axis=-1)
    rest = 1 - jnp.sum(jnp.exp(some), axis=-1, keepdims=True)
    return jnp.concatenate([some, jnp.log(jnp.maximum(rest, LEAST))], axis=-1)


def divergence(
    student: Float[Array, "... K"], teacher: Float[Array, "... K"], kind: str
) -> Float[Array, "..."]:
    """Return how far the student's log-probabilities lie from the teacher's, in nats.

    kind: "forward", KL(teacher, student); "reverse", KL(student, teacher) (Gu et al. 2024);
    "jensen_shannon", the mean of both to their mixture.
    """

    def kl(p: Array, q: Array) -> Array:
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    mixture = jnp.logaddexp(student, teacher) - jnp.log(2.0)
    return (kl(teacher, mixture) + kl(student, mixture)) / 2


def teach(logits: Float[Array, "B T V"], settings: DistillSettings) -> dict[str, Array]:
    """Return what a batch holds of a teacher's logits."""
    if settings.top is None:
        return {"teacher": log_probs(logits, None, settings.temperature)}
    _, ids = jax.lax.top_k(logits, settings.top)
    return {"teacher": log_probs(logits, ids, settings.temperature), "teacher_ids": ids}


def distill_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    settings: DistillSettings,
) -> Loss:
    """Return the Loss of a batch with what a teacher says of it.

    weight * temperature^2 * divergence + (1 - weight) * cross entropy, summed over the targets;
    `nll` is the plain one, `metrics` hold the mean divergence. The logits of all positions are in
    memory at once.
    """
    targets = batch["targets"]
    weights = jnp.where(is_ignored(targets), 0.0, batch["weights"].astype(jnp.float32))
    out = read(params, config, {k: v for k, v in batch.items() if k not in NAMES}, key)
    cap = config.logit_cap
    logits = unembed(out.features, out.table, cap=cap, dtype=config.compute_dtype)
    ids = batch.get("teacher_ids")
    student = log_probs(logits, ids, settings.temperature)
    distances = divergence(student, batch["teacher"], settings.loss)
    plain, nll = cross_entropy(logits, targets, smoothing=0.0, z=0.0)
    mixed = settings.weight * settings.temperature**2 * distances + (1 - settings.weight) * plain
    weight = jnp.sum(jnp.abs(weights))
    mean = jnp.sum(scale_by_weights(distances, weights)) / jnp.maximum(weight, 1.0)
    return Loss(
        jnp.sum(scale_by_weights(mixed, weights)),
        weight,
        jnp.sum(scale_by_weights(nll, weights), axis=1),
        {"divergence": mean},
    )
