"""The training step of some settings, before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import optax

from jaxgen.run.settings import Settings
from jaxgen.train.losses import causal_loss
from jaxgen.train.step import train_step


def loss_of(settings: Settings) -> Callable:
    """Return the loss with its options fixed."""
    train = settings.train
    return partial(causal_loss, smoothing=train.smoothing, z=train.z_loss, chunk=train.loss_chunk)


def step_of(settings: Settings, optimizer: optax.GradientTransformation) -> Callable:
    """Return the pure step (state, batch) -> (state, metrics) with its options fixed."""
    train = settings.train
    return partial(
        train_step,
        config=settings.model,
        optimizer=optimizer,
        loss=loss_of(settings),
        accumulate=train.accumulate,
        spike=train.spike,
        patience=train.patience,
    )
