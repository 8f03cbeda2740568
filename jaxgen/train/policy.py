"""Policy gradient on rewarded completions: GRPO, its kin and RLOO, as pure losses."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.errors import ConfigError
from jaxgen.models import api
from jaxgen.train.log_probs import TEXTS, token_nll
from jaxgen.train.losses import Batch, Loss

PolicyLoss = Literal["grpo", "bnpo", "dr_grpo", "rloo"]
# How each scales the advantages.
SCALES: dict[PolicyLoss, Literal["group", "none", "others"]] = {
    "grpo": "group", "bnpo": "group", "dr_grpo": "none", "rloo": "others",
}  # fmt: skip
TINY = 1e-4  # added to a group's standard deviation, as in TRL


def advantages(
    rewards: Float[Array, "B"], group: int, *, scale: Literal["group", "none", "others"] = "group"
) -> Float[Array, "B"]:
    """Return the advantage of each completion over those of its group.

    Args:
        rewards: of completions, those to one prompt in a row.
        group: completions of a prompt, 2 or more.
        scale: group: less the mean, over the standard deviation (GRPO, Shao et al. 2024); none:
            less the mean (Dr. GRPO, Liu et al. 2025); others: less the mean of the others (RLOO,
            Ahmadian et al. 2024).

    Raises:
        ConfigError: where the rewards are no whole groups, or a group is of one.
    """
    if group < 2 or rewards.shape[0] % group:
        raise ConfigError(f"{rewards.shape[0]} rewards are no groups of group={group}, 2 or more")
    groups = rewards.reshape(-1, group)
    apart = groups - groups.mean(axis=1, keepdims=True)
    if scale == "group":
        apart = apart / (groups.std(axis=1, ddof=1, keepdims=True) + TINY)
    elif scale == "others":
        apart = apart * (group / (group - 1))
    return apart.reshape(-1)


def token_logps(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    **options: Any,
) -> Float[Array, "B T"]:
    """Return the log-probability of each target of a batch [B, T]; options: of `token_nll`."""
    rows = {name: jnp.asarray(batch[name])[:, None] for name in TEXTS}
    return -token_nll(params, config, rows, key, **options)[:, 0]


def policy_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    loss: PolicyLoss = "grpo",
    clip: float = 0.2,
    beta: float = 0.0,
    length: int | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Loss:
    """Return the Loss of completions with advantages, that of TRL's GRPO and RLOO trainers.

    Args:
        params: of the model.
        config: of a model of tokens.
        batch: tokens, targets, segments, positions and weights [B, T] (1 where the target is of the
            completion) and advantage [B]; optional are old [B, T], log-probabilities under the
            model that has sampled (this one's without), and reference [B, T], for beta.
        key: turns dropout on.
        loss: grpo: a mean over the tokens of each completion, then over completions; bnpo: over
            all tokens; dr_grpo: over `length` tokens each; rloo: the ratio of whole completions.
        clip: how far the ratio to the old probabilities counts, on either side of 1.
        beta: weight of the divergence from the reference, per token; RLOO takes it off rewards.
        length: dr_grpo: most tokens that a completion may have.
        temperature: of the sampling: logits are divided by it.
        chunk: as of `causal_loss`.
    """
    if (loss == "dr_grpo") != (length is not None):
        raise ConfigError(f"length={length} with loss={loss}: it is given with dr_grpo, only there")
    weights = jnp.asarray(batch["weights"])
    logps = token_logps(params, config, batch, key, temperature=temperature, chunk=chunk)
    old = batch.get("old", jax.lax.stop_gradient(logps))
    ratio, advantage = (logps - old) * weights, jnp.asarray(batch["advantage"])
    tokens, real = weights.sum(-1), (weights.sum(-1) > 0).astype(jnp.float32)
    if loss == "rloo":
        each = _clipped(ratio.sum(-1), advantage, clip) * real
        total, weight = each.sum(), real.sum()
    else:
        losses = _clipped(ratio, advantage[:, None], clip)
        if beta:
            apart = jnp.where(weights > 0, batch["reference"] - logps, 0.0)
            losses = losses + beta * (jnp.expm1(apart) - apart)
        each = jnp.sum(losses * weights, axis=-1)
        if loss == "grpo":
            each = each / jnp.maximum(tokens, 1)
        total = each.sum()
        weight = {"grpo": real.sum(), "bnpo": tokens.sum()}.get(loss, real.sum() * (length or 1))
    metrics = {}
    if "reference" in batch:
        apart = jnp.where(weights > 0, batch["reference"] - logps, 0.0)
        far = jnp.sum(jnp.expm1(apart) - apart) / jnp.maximum(tokens.sum(), 1)
        metrics["kl"] = jax.lax.stop_gradient(far)
    return Loss(total, weight, each, metrics)


def _clipped(log_ratio: Array, advantage: Array, clip: float) -> Array:
    ratio = jnp.exp(log_ratio)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
