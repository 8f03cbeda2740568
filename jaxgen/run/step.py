"""The training step of some settings, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optax

from jaxgen.run import privacy, shapes
from jaxgen.run.settings import Settings
from jaxgen.train import adversarial, federated, mixup, preferences, private, quantised
from jaxgen.train.distill import distill_loss
from jaxgen.train.losses import causal_loss
from jaxgen.train.policy import policy_loss
from jaxgen.train.settings import PERTURBING, SMOOTHING
from jaxgen.train.step import train_step


def loss_of(settings: Settings, base: Any = None) -> Callable:
    """Return the loss with its options fixed; base: the parameters beneath an adapter."""
    own, adapter = settings.train.adversarial, shapes.adapter(settings)
    loss = objective_loss(settings, trained=True)

    def attach(params: Any, key: Any) -> Any:
        return shapes.attached(settings, adapter, base, params, key)

    if own.kind in PERTURBING:
        return adversarial.perturbed(loss, own, attach)
    if adapter is None:
        return loss
    return lambda params, config, batch, key=None: loss(attach(params, key), config, batch, key)


def objective_loss(settings: Settings, *, trained: bool = False) -> Callable:
    """Return the loss of a run's objective with its options fixed, of whole parameters.

    trained: with what no validation has, the divergence of train.adversarial and mixup.
    """
    loss, form = _objective_loss(settings, trained), settings.train.quantize
    own = settings.train.adversarial
    if trained and own.kind in SMOOTHING:
        more = {"smoothing": settings.train.smoothing, "z": settings.train.z_loss}
        loss = partial(adversarial.smooth_loss, settings=own, **more)
    if form is None:
        return loss

    def rounded(params: Any, config: Any, *args: Any, **more: Any) -> Any:
        return loss(quantised.straight_through(params, config, form), config, *args, **more)

    return rounded


def _objective_loss(settings: Settings, trained: bool) -> Callable:
    train, name = settings.train, settings.objective.name
    if name in preferences.LOSSES:
        loss = preferences.LOSSES[name]
        return partial(loss, settings=settings.preference, chunk=train.loss_chunk)
    if settings.distill.teacher is not None:
        return partial(distill_loss, settings=settings.distill)
    if name == "policy":
        policy = settings.policy
        length = settings.objective.completion(settings.row_length)
        return partial(
            policy_loss,
            loss=policy.loss,
            clip=policy.clip,
            beta=0.0 if policy.loss == "rloo" else policy.beta,  # it is taken off rewards
            length=length if policy.loss == "dr_grpo" else None,
            temperature=policy.temperature,
            chunk=train.loss_chunk,
        )
    for one in settings.data.augment if trained else ():
        if one.kind == "mixup":
            return partial(
                mixup.mixup_loss, alpha=one.alpha, smoothing=train.smoothing, z=train.z_loss
            )
    return partial(causal_loss, smoothing=train.smoothing, z=train.z_loss, chunk=train.loss_chunk)


def step_of(settings: Settings, optimizer: optax.GradientTransformation) -> Callable:
    """Return the pure step (state, batch) -> (state, metrics) with its options fixed.

    With an adapter its third argument is the parameters beneath it, which are read alone.
    """

    train = settings.train
    step = partial(
        train_step,
        config=settings.model,
        optimizer=optimizer,
        accumulate=train.accumulate,
        spike=train.spike,
        patience=train.patience,
    )
    if train.privacy.on:
        # A step that is refused for its loss would tell of the data.
        step = partial(step, spike=None)
    own = lambda base: _with_privacy(partial(step, loss=loss_of(settings, base)), settings, base)  # noqa: E731
    if settings.adapter.kind == "none":
        return own(None)
    return lambda state, batch, base: own(base)(state, batch)


def _with_privacy(step: Callable, settings: Settings, base: Any) -> Callable:
    train = settings.train
    own = privacy.private_of(settings, base) if train.privacy.on else None
    if train.federated.on:
        clients = federated.Federated(train.federated, train.freeze)
        gradients = partial(federated.gradients, federated=clients, private=own)
    elif own is None:
        return step
    else:
        gradients = partial(private.gradients, private=own)
    if train.privacy.quantile is not None:
        return privacy.with_adaptive_clip(step, gradients)
    return partial(step, gradients=gradients)
