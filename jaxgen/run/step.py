"""The training step of some settings, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import optax

from jaxgen.adapters.adapter import attach
from jaxgen.run import shapes
from jaxgen.run.settings import Settings
from jaxgen.train import preferences
from jaxgen.train.distill import distill_loss
from jaxgen.train.losses import causal_loss
from jaxgen.train.policy import policy_loss
from jaxgen.train.step import train_step

DROPOUT = 0xADA97E5  # folded into a step's key for the dropout of an adapter


def loss_of(settings: Settings, base: Any = None) -> Callable:
    """Return the loss with its options fixed; base: the parameters beneath an adapter."""
    loss = objective_loss(settings)
    adapter = shapes.adapter(settings)
    if adapter is None:
        return loss

    def beside(params: Any, config: Any, batch: Any, key: Any = None) -> Any:
        own = None if key is None else jax.random.fold_in(key, DROPOUT)
        return loss(
            attach(base, replace(adapter, params=params), config, key=own), config, batch, key
        )

    return beside


def objective_loss(settings: Settings) -> Callable:
    """Return the loss of a run's objective with its options fixed, of whole parameters."""
    train, name = settings.train, settings.objective.name
    if name in preferences.LOSSES:
        loss = preferences.LOSSES[name]
        return partial(loss, settings=settings.preference, chunk=train.loss_chunk)
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
    if settings.distill.teacher is not None:
        return partial(distill_loss, settings=settings.distill)
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
    if settings.adapter.kind == "none":
        return partial(step, loss=loss_of(settings))
    return lambda state, batch, base: step(state, batch, loss=loss_of(settings, base))
