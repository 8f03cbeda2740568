"""Losses by which a student learns from a teacher's probabilities (Hinton et al. 2015).

A batch holds what the teacher says: `teacher`, log-probabilities [B, T, K] at the loss's
temperature, and, of its likeliest tokens alone, `teacher_ids` [B, T, K - 1]; the last of K is then
the probability of all others together. Of layers that are compared it holds `teacher_hidden`
[B, L, T, D] and `teacher_attention` [B, L, N, T, T], in the student's width and number of heads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.models import api
from jaxgen.nn.stack import layer_taps
from jaxgen.ops.losses import cross_entropy, is_ignored, scale_by_weights, unembed
from jaxgen.train.losses import Batch, Loss, read
from jaxgen.train.settings import DistillSettings

LEAST = 1e-12  # of a probability whose logarithm is taken
TAPS = {"hidden": "out", "attention": "attn/probs"}  # by the weight of DistillSettings
NAMES = ("teacher", "teacher_ids", *(f"teacher_{name}" for name in TAPS))


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
    student: Float[Array, "... K"], teacher: Float[Array, "... K"], kind: str, beta: float = 0.5
) -> Float[Array, "..."]:
    """Return how far the student's log-probabilities lie from the teacher's, in nats.

    kind: "forward", KL(teacher, student); "reverse", KL(student, teacher) (Gu et al. 2024);
    "jensen_shannon", of both to their mixture, of which the teacher has the share beta, as it has
    of the sum (Agarwal et al. 2024).
    """

    def kl(p: Array, q: Array) -> Array:
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    mixture = jnp.logaddexp(student + jnp.log1p(-beta), teacher + jnp.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def hidden_distance(
    student: Float[Array, "... D"], teacher: Float[Array, "... D"]
) -> Float[Array, "..."]:
    """Return 1 less the cosine of states, from 0 to 2 (Sanh et al. 2019)."""
    energy = jnp.sum(student * student, axis=-1) * jnp.sum(teacher * teacher, axis=-1)
    return 1 - jnp.sum(student * teacher, axis=-1) / jnp.sqrt(jnp.maximum(energy, LEAST))


def attention_distance(
    student: Float[Array, "... S"], teacher: Float[Array, "... S"]
) -> Float[Array, "..."]:
    """Return KL(teacher, student) of where queries look, in nats (Wang et al. 2020)."""
    logs = (jnp.log(jnp.maximum(x, LEAST)) for x in (teacher, student))
    return jnp.sum(teacher * jnp.subtract(*logs), axis=-1)


def taps_of(settings: DistillSettings) -> tuple[str, ...]:
    """Return the globs of the activations that a loss compares."""
    return tuple(f"*/{name}" for key, name in TAPS.items() if getattr(settings, key))


def teach(
    logits: Float[Array, "B T V"],
    settings: DistillSettings,
    taps: dict[str, Array] | None = None,
    config: ModelConfig | None = None,
    student: ModelConfig | None = None,
) -> dict[str, Array]:
    """Return what a batch holds of a teacher's logits and, where layers are compared, of its taps.

    config: of the teacher. States of another width than the student's go through a fixed matrix
    with orthonormal rows or columns, drawn once for all runs, which keeps angles, or nearly; of
    more heads than the student has, neighbours are averaged.
    """
    ids = None if settings.top is None else jax.lax.top_k(logits, settings.top)[1]
    said = {"teacher": log_probs(logits, ids, settings.temperature)}
    said |= {} if ids is None else {"teacher_ids": ids}
    if not (taps and config and student):
        return said
    for part, name in TAPS.items():
        if getattr(settings, part):
            x = jnp.stack([layer_taps(taps, config, at)[name] for _, at in settings.layers], 1)
            if part == "attention":
                x = x.reshape(*x.shape[:2], student.heads, -1, *x.shape[3:]).mean(3)
            elif config.d_model != student.d_model:
                square = jax.random.orthogonal(
                    jax.random.key(0), max(config.d_model, student.d_model)
                )
                x = x @ square[: config.d_model, : student.d_model].astype(x.dtype)
            said[f"teacher_{part}"] = x.astype(jnp.float32)
    return said


def distill_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    settings: DistillSettings,
) -> Loss:
    """Return the Loss of a batch with what a teacher says of it.

    weight * temperature^2 * divergence + (1 - weight) * cross entropy, summed over the targets,
    and with their weights the mean distance of the layers that are compared; `nll` is the plain
    one, `metrics` hold the mean divergence and distances. The logits of all positions are in memory
    at once.
    """
    targets = batch["targets"]
    weights = jnp.where(is_ignored(targets), 0.0, batch["weights"].astype(jnp.float32))
    inputs = {k: v for k, v in batch.items() if k not in NAMES}
    out = read(params, config, inputs, key, taps_of(settings))
    cap = config.logit_cap
    logits = unembed(out.features, out.table, cap=cap, dtype=config.compute_dtype)
    ids = batch.get("teacher_ids")
    student = log_probs(logits, ids, settings.temperature)
    apart = {"divergence": divergence(student, batch["teacher"], settings.loss, settings.beta)}
    plain, nll = cross_entropy(logits, targets, smoothing=0.0, z=0.0)
    mixed = settings.weight * settings.temperature**2 * apart["divergence"]
    mixed += (1 - settings.weight) * plain
    for part, name in TAPS.items():
        if factor := getattr(settings, part):
            own = jnp.stack(
                [layer_taps(out.taps, config, at)[name] for at, _ in settings.layers], 1
            )
            compare = hidden_distance if part == "hidden" else attention_distance
            far = compare(own.astype(jnp.float32), batch[f"teacher_{part}"])
            apart[part] = far.mean(tuple(range(1, far.ndim - 1)))
            mixed += factor * apart[part]
    weight = jnp.sum(jnp.abs(weights))
    means = {
        name: jnp.sum(scale_by_weights(x, weights)) / jnp.maximum(weight, 1.0)
        for name, x in apart.items()
    }
    return Loss(
        jnp.sum(scale_by_weights(mixed, weights)),
        weight,
        jnp.sum(scale_by_weights(nll, weights), axis=1),
        means,
    )
