"""Losses of preferences: pairs of completions, completions liked or not, and reward models.

Each is a pure function (params, config, batch, key) -> Loss. In a batch, tokens, targets, segments,
positions and weights are [B, 2, T]: of each row two texts, of which `weights` marks what is judged.
What a reference model gives is in the batch, so that one forward and backward pass is all there is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgen.config import ModelConfig
from jaxgen.mesh.place import manual
from jaxgen.models import api
from jaxgen.ops.losses import unembed
from jaxgen.train.log_probs import TEXTS, completion_logps, texts_as_rows, token_nll
from jaxgen.train.losses import Batch, Loss, read
from jaxgen.train.settings import PreferenceSettings


class Pairs(NamedTuple):
    """Log-probabilities [B] of completions, by the model and by its reference, and their tokens.

    real: [B] 1 for a pair, 0 for a row of padding.
    """

    chosen: Float[Array, "B"]
    rejected: Float[Array, "B"]
    ref_chosen: Float[Array, "B"]
    ref_rejected: Float[Array, "B"]
    lengths: Float[Array, "B 2"]
    real: Float[Array, "B"]

    @property
    def ratios(self) -> tuple[Array, Array]:
        """Log-ratios of the model to its reference, of chosen and rejected."""
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    @property
    def delta(self) -> Array:
        """The chosen log-ratio less the rejected one."""
        chosen, rejected = self.ratios
        return chosen - rejected

    @property
    def means(self) -> tuple[Array, Array]:
        """Log-ratios per token of the completion."""
        lengths = jnp.maximum(self.lengths, 1)
        return self.ratios[0] / lengths[:, 0], self.ratios[1] / lengths[:, 1]


def pair_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    settings: PreferenceSettings,
    chunk: int | None = None,
) -> Loss:
    """Return the Loss of pairs, its weight their number: that of TRL's trainers.

    Args:
        params: of the model.
        config: of a model of tokens.
        batch: TEXTS [B, 2, T], chosen and rejected; reference [B, 2], the log-probabilities that
            the reference model gives them, read where `settings.loss` is relative to one.
        key: turns dropout on.
        settings: which loss (`PAIR_LOSSES`, or orpo, cpo or simpo), and its numbers. aot sorts the
            pairs of a microbatch, and the nll of orpo and cpo is a mean over its tokens.
        chunk: positions whose logits exist at once; None sizes it by memory.
    """
    batch = jax.tree.map(jnp.asarray, dict(batch))
    nll, weights = token_nll(params, config, batch, key, chunk=chunk), batch["weights"]
    lengths = weights.sum(-1)
    real = (lengths > 0).all(axis=1).astype(jnp.float32)
    logps = -jnp.sum(nll * weights, axis=-1)
    reference = batch["reference"] if settings.has_reference else jnp.zeros_like(logps)
    name, beta = settings.loss, settings.beta
    if name in ("orpo", "simpo"):
        logps = logps / jnp.maximum(lengths, 1)
    logps = jnp.where(real[:, None] > 0, logps, -1.0)  # of which odds exist, where 0 has none
    sides = logps[:, 0], logps[:, 1], reference[:, 0], reference[:, 1]
    pairs = Pairs(*sides, lengths, real)
    each = PAIR_LOSSES[name](pairs, settings) * real
    chosen, rejected = (beta * x for x in pairs.ratios)
    count = jnp.maximum(real.sum(), 1)
    mean = lambda x: jnp.sum(jax.lax.stop_gradient(x) * real) / count  # noqa: E731
    metrics = {
        "accuracy": mean((chosen > rejected).astype(jnp.float32)),
        "margin": mean(chosen - rejected),
        "reward_chosen": mean(chosen),
        "reward_rejected": mean(rejected),
        "logp_chosen": mean(pairs.chosen),
        "logp_rejected": mean(pairs.rejected),
    }
    if settings.has_reference:
        # Of the model to its reference, per token: how much likelier it makes these completions.
        ratio = sum(pairs.ratios) / jnp.maximum(lengths.sum(-1), 1)
        metrics["log_ratio"] = mean(ratio)
    if settings.nll_weight:
        said = weights[:, 0] if name != "orpo" else (batch["segments"][:, 0] > 0)
        said = said * real[:, None]
        part = _everywhere(real.sum()) / jnp.maximum(_everywhere(said.sum()), 1)
        each = each + settings.nll_weight * jnp.sum(nll[:, 0] * said, axis=1) * part
        metrics["nll"] = jnp.sum(jax.lax.stop_gradient(nll[:, 0]) * said) / jnp.maximum(
            said.sum(), 1
        )
    return Loss(each.sum(), real.sum(), each, metrics)


def _everywhere(x: Array) -> Array:
    """Return a sum over the devices of code that is written per device."""
    axes = tuple(axis for axis, size in manual().items() if size > 1)
    return jax.lax.psum(x, axes) if axes else x


def _smoothed(logits: Array, settings: PreferenceSettings) -> Array:
    smoothing = settings.label_smoothing
    right, wrong = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(1 - smoothing) * right - smoothing * wrong


def _sigmoid(pairs: Pairs, settings: PreferenceSettings) -> Array:
    return _smoothed(settings.beta * pairs.delta, settings)


def _sigmoid_norm(pairs: Pairs, settings: PreferenceSettings) -> Array:
    chosen, rejected = pairs.means
    return _smoothed(settings.beta * (chosen - rejected), settings)


def _hinge(pairs: Pairs, settings: PreferenceSettings) -> Array:
    return jax.nn.relu(1 - settings.beta * pairs.delta)


def _ipo(pairs: Pairs, settings: PreferenceSettings) -> Array:
    chosen, rejected = pairs.means
    return (chosen - rejected - 1 / (2 * settings.beta)) ** 2


def _robust(pairs: Pairs, settings: PreferenceSettings) -> Array:
    smoothing, logits = settings.label_smoothing, settings.beta * pairs.delta
    right = -(1 - smoothing) * jax.nn.log_sigmoid(logits)
    return (right + smoothing * jax.nn.log_sigmoid(-logits)) / (1 - 2 * smoothing)


def _exo_pair(pairs: Pairs, settings: PreferenceSettings) -> Array:
    logits, smoothing = settings.beta * pairs.delta, settings.label_smoothing
    right, wrong = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return jnp.exp(right) * (right - jnp.log1p(-smoothing)) + jnp.exp(wrong) * (
        wrong - jnp.log(smoothing)
    )


def _nca_pair(pairs: Pairs, settings: PreferenceSettings) -> Array:
    chosen, rejected = (settings.beta * x for x in pairs.ratios)
    both = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
    return -jax.nn.log_sigmoid(chosen) - 0.5 * both


def _bco_pair(pairs: Pairs, settings: PreferenceSettings) -> Array:
    chosen, rejected = (settings.beta * x for x in pairs.ratios)
    return -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)


def _sppo_hard(pairs: Pairs, settings: PreferenceSettings) -> Array:
    chosen, rejected = pairs.ratios
    return (chosen - 0.5 / settings.beta) ** 2 + (rejected + 0.5 / settings.beta) ** 2


def _sorted(x: Array, real: Array) -> Array:
    return jnp.sort(jnp.where(real > 0, x, 1e30))  # rows of padding come last


def _aot(pairs: Pairs, settings: PreferenceSettings, *, unpaired: bool = False) -> Array:
    one, other = pairs.chosen - pairs.rejected, pairs.ref_chosen - pairs.ref_rejected
    if unpaired:
        one, other = pairs.ratios
    apart = _sorted(one, pairs.real) - _sorted(other, pairs.real)
    each = _smoothed(settings.beta * apart, settings)
    # The n-th of the sorted losses is put at the n-th real row: their sum is what counts.
    return each[(jnp.cumsum(pairs.real) - 1).astype(jnp.int32)]


def _apo_zero(pairs: Pairs, settings: PreferenceSettings) -> Array:
    chosen, rejected = (settings.beta * x for x in pairs.ratios)
    return jax.nn.sigmoid(-chosen) + jax.nn.sigmoid(rejected)


def _apo_down(pairs: Pairs, settings: PreferenceSettings) -> Array:
    chosen, _ = pairs.ratios
    return jax.nn.sigmoid(settings.beta * chosen) + jax.nn.sigmoid(-settings.beta * pairs.delta)


def _orpo(pairs: Pairs, settings: PreferenceSettings) -> Array:
    odds = lambda logp: logp - _log1mexp(logp)  # noqa: E731
    return -settings.beta * jax.nn.log_sigmoid(odds(pairs.chosen) - odds(pairs.rejected))


def _log1mexp(x: Array) -> Array:
    """log(1 - exp(x)) of x < 0, exact near both ends."""
    near = x > -0.6931472
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))),
    )


def _simpo(pairs: Pairs, settings: PreferenceSettings) -> Array:
    return _smoothed(settings.beta * pairs.delta - settings.gamma, settings)


PAIR_LOSSES: dict[str, Callable[[Pairs, PreferenceSettings], Array]] = {
    "sigmoid": _sigmoid,  # Rafailov et al. 2023; smoothed: Mitchell 2023
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,  # Zhao et al. 2023
    "ipo": _ipo,  # Azar et al. 2023
    "robust": _robust,  # Chowdhury et al. 2024
    "exo_pair": _exo_pair,  # Ji et al. 2024
    "nca_pair": _nca_pair,  # Chen et al. 2024
    "bco_pair": _bco_pair,  # Jung et al. 2024
    "sppo_hard": _sppo_hard,  # Wu et al. 2024
    "aot": _aot,  # Melnyk et al. 2024
    "aot_unpaired": partial(_aot, unpaired=True),
    "apo_zero": _apo_zero,  # D'Oosterlinck et al. 2024
    "apo_down": _apo_down,
    "orpo": _orpo,  # Hong et al. 2024
    "cpo": _sigmoid,  # Xu et al. 2024: without a reference
    "simpo": _simpo,  # Meng et al. 2024
}


def feedback_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    settings: PreferenceSettings,
    chunk: int | None = None,
) -> Loss:
    """Return the Loss of single completions that were liked or not: KTO (Ethayarajh et al. 2024).

    Args:
        params: of the model.
        config: of a model of tokens.
        batch: TEXTS [B, 2, T], a completion, and its prompt with the completion of another;
            reference [B, 2]; label [B], 1 where the completion was liked, else 0.
        key: turns dropout on.
        settings: of loss kto or apo_zero_unpaired.
        chunk: as of `pair_loss`.
    """
    batch = jax.tree.map(jnp.asarray, dict(batch))
    side = lambda n: {name: batch[name][:, n : n + 1] for name in TEXTS}  # noqa: E731
    nll = token_nll(params, config, side(0), key, chunk=chunk)[:, 0]
    lengths = batch["weights"][:, 0].sum(-1)
    real, liked = (lengths > 0).astype(jnp.float32), batch["label"] > 0
    ratio = -jnp.sum(nll * batch["weights"][:, 0], -1) - batch["reference"][:, 0]
    beta, kl = settings.beta, jnp.zeros(())
    count = jnp.maximum(_everywhere(real.sum()), 1)
    if settings.loss == "kto":
        held = jax.lax.stop_gradient(params)
        other = completion_logps(held, config, side(1), chunk=chunk)[:, 0]
        apart = (other - batch["reference"][:, 1]) * real
        kl = jnp.maximum(jax.lax.stop_gradient(_everywhere(apart.sum()) / count), 0)
        each = jnp.where(
            liked, jax.nn.sigmoid(beta * (kl - ratio)), jax.nn.sigmoid(beta * (ratio - kl))
        )
    else:
        each = jnp.where(liked, jax.nn.sigmoid(-beta * ratio), jax.nn.sigmoid(beta * ratio))
    each = each * jnp.where(liked, settings.desirable, settings.undesirable) * real
    reward = jax.lax.stop_gradient(beta * ratio)
    mean = lambda x, of: jnp.sum(x * of) / jnp.maximum(of.sum(), 1)  # noqa: E731
    good, bad = liked * real, ~liked * real
    metrics = {
        "accuracy": mean(((reward > 0) == liked).astype(jnp.float32), real),
        "reward_chosen": mean(reward, good),
        "reward_rejected": mean(reward, bad),
        "margin": mean(reward, good) - mean(reward, bad),
        "kl": kl,
    }
    return Loss(each.sum(), real.sum(), each, metrics)


def reward_loss(
    params: api.Params,
    config: ModelConfig,
    batch: Batch,
    key: PRNGKeyArray | None = None,
    *,
    settings: PreferenceSettings,
    chunk: int | None = None,
) -> Loss:
    """Return the Loss of a reward model on pairs (Bradley and Terry 1952; Ouyang et al. 2022).

    Args:
        params: of the model.
        config: of a model with head=classes and classes=1: the reward of a text.
        batch: TEXTS [B, 2, T], chosen and rejected; margin [B], by which the chosen one is better.
        key: turns dropout on.
        settings: of `center`, the weight of the squared sum of two rewards.
        chunk: not used: a text has one reward.
    """
    out = read(params, config, texts_as_rows(batch), key)
    rewards = unembed(out.features, out.table, cap=None, dtype=config.compute_dtype)
    chosen, rejected = rewards.reshape(batch["tokens"].shape[:2]).astype(jnp.float32).T
    real = (batch["segments"] > 0).any(-1).all(1).astype(jnp.float32)
    each = -jax.nn.log_sigmoid(chosen - rejected - batch["margin"])
    each = (each + settings.center * (chosen + rejected) ** 2) * real
    count = jnp.maximum(real.sum(), 1)
    mean = lambda x: jnp.sum(jax.lax.stop_gradient(x) * real) / count  # noqa: E731
    metrics = {
        "accuracy": mean((chosen > rejected).astype(jnp.float32)),
        "margin": mean(chosen - rejected),
        "reward_chosen": mean(chosen),
        "reward_rejected": mean(rejected),
    }
    return Loss(each.sum(), real.sum(), each, metrics)


LOSSES: dict[str, Callable[..., Loss]] = {
    "preferences": pair_loss,
    "feedback": feedback_loss,
    "rewards": reward_loss,
}
