"""What a training step is given, as shapes: the state and the batch of an objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.models import api
from jaxgen.run.settings import Settings
from jaxgen.train import optimizer
from jaxgen.train import state as states


def state(settings: Settings) -> Any:
    """Return the training state as ShapeDtypeStructs."""
    params, key = api.abstract(settings.model), jax.random.key(1)  # known without being drawn
    return jax.eval_shape(lambda params: states.train_state(params, rule(settings), key), params)


def rule(settings: Settings) -> optax.GradientTransformation:
    """Return the optimizer of a run's model."""
    model = settings.model
    return optimizer.make(settings.train, api.axes(model), balance_rate=model.experts.balance_rate)


def fresh(settings: Settings, rule: optax.GradientTransformation) -> states.State:
    """Return a training state before the first step."""
    key = jax.random.key(0)
    return states.train_state(api.init(settings.model, key), rule, jax.random.key(1))


def batch(settings: Settings) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the global batch as ShapeDtypeStructs, without what only the loop reads."""
    rows, wanted = settings.train.batch, settings.objective
    width = source = settings.model.context
    if wanted.name == "pairs" and settings.model.topology == "encoder_decoder":
        source, width = wanted.source or width, wanted.target or width
    targets = 1 if wanted.name == "classes" else width
    shapes: dict[str, tuple[int, int]] = dict.fromkeys(
        ("tokens", "segments", "positions"), (rows, width)
    )
    shapes |= dict.fromkeys(("targets", "weights"), (rows, targets))
    if settings.model.topology == "encoder_decoder":
        shapes |= dict.fromkeys(("source", "source_segments", "source_positions"), (rows, source))
    elif wanted.name == "prefix":
        shapes["prefix"] = (rows, width)
    kinds = {"weights": jnp.float32}
    return {
        name: jax.ShapeDtypeStruct(shape, kinds.get(name, jnp.int32))
        for name, shape in shapes.items()
    }
