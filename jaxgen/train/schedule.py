"""Learning rates as functions of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp

from jaxgen.train.settings import TrainSettings


def make(settings: TrainSettings) -> Callable:
    """Return step -> learning rate: a linear warm-up, then the schedule's own shape.

    The warm-up's first step already learns: rate * (step + 1) / (warmup + 1); a warm-up longer than
    the run is cut to it. After it:

    cosine, linear: fall to final_rate at step `steps` (cosine: Loshchilov and Hutter 2017).
    wsd: stays, then falls to final_rate along a line in the last `decay` of the steps (Hu et al.
    2024, MiniCPM; the line: Hägele et al. 2024).
    inverse_sqrt: rate * sqrt(warmup / step), as Vaswani et al. 2017 have it; a warm-up of 0 counts
    as 1. It and constant, which stays, have no end, so that final_rate says nothing to them.
    """
    settings = replace(settings, warmup=min(settings.warmup, settings.steps))
    shape = SHAPES[settings.schedule]
    warmup = settings.warmup

    def rate(step):
        rise = (step + 1) / (warmup + 1)
        done = (step - warmup) / max(settings.steps - warmup, 1)
        after = shape(step, jnp.clip(done, 0.0, 1.0), settings)
        return settings.learning_rate * jnp.where(step < warmup, rise, after)

    return rate


def _cosine(step, done, settings):
    return _down_to(settings.final_rate, 0.5 * (1 + jnp.cos(jnp.pi * done)))


def _linear(step, done, settings):
    return _down_to(settings.final_rate, 1 - done)


def _inverse_sqrt(step, done, settings):
    start = max(settings.warmup, 1)
    return jnp.sqrt(start / jnp.maximum(step, start))


def _wsd(step, done, settings):
    length = max(min(settings.decay * settings.steps, settings.steps - settings.warmup), 1)
    return _down_to(settings.final_rate, jnp.clip((settings.steps - step) / length, 0.0, 1.0))


def _constant(step, done, settings):
    return jnp.ones_like(done)


def _down_to(final, fall):
    return final + (1 - final) * fall


SHAPES = {
    "cosine": _cosine,
    "linear": _linear,
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
    "constant": _constant,
}
