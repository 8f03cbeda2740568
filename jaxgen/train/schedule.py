"""Learning rates as functions of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp

from jaxgen.train.settings import TrainSettings


def make(settings: TrainSettings) -> Callable:
    """Return step -> learning rate: a linear warm-up, then the schedule's own shape.

    The warm-up's first step already learns: rate * (step + 1) / (warmup + 1); a warm-up longer than
    the run is cut to it. cosine: Loshchilov and Hutter 2017; inverse_sqrt: Vaswani et al. 2017;
    wsd: Hu et al. 2024 (MiniCPM).
    """
    settings = replace(settings, warmup=min(settings.warmup, settings.steps))
    shape = SHAPES[settings.schedule]
    warmup, final = settings.warmup, settings.final_rate

    def rate(step):
        rise = (step + 1) / (warmup + 1)
        done = (step - warmup) / max(settings.steps - warmup, 1)
        fall = shape(step, jnp.clip(done, 0.0, 1.0), settings)
        return settings.learning_rate * jnp.where(step < warmup, rise, final + (1 - final) * fall)

    return rate


def _cosine(step, done, settings):
    return 0.5 * (1 + jnp.cos(jnp.pi * done))


def _linear(step, done, settings):
    return 1 - done


def _inverse_sqrt(step, done, settings):
    start = max(settings.warmup, 1)
    return jnp.sqrt(start / jnp.maximum(step, start))


def _wsd(step, done, settings):
    length = max(settings.decay * settings.steps, 1)
    return jnp.clip((settings.steps - step) / length, 0.0, 1.0)


def _constant(step, done, settings):
    return jnp.ones_like(done)


SHAPES = {
    "cosine": _cosine,
    "linear": _linear,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
    "constant": _constant,
}
