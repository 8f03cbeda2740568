"""What a training step is given, as shapes: the state and the batch of an objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen import tree
from jaxgen.adapters import adapter as adapters
from jaxgen.adapters.adapter import Adapter
from jaxgen.adapters.base import quantise
from jaxgen.data.objectives.settings import PREFERENCES
from jaxgen.data.preferences import LABEL, MARGIN
from jaxgen.data.rounds import LOST
from jaxgen.mesh import place
from jaxgen.models import api
from jaxgen.run.settings import Settings
from jaxgen.train import flops, optimizer
from jaxgen.train import state as states

DROPOUT = 0xADA97E5  # folded into a step's key for the dropout of an adapter


def adapter(settings: Settings) -> Adapter | None:
    """Return the form of a run's adapter; None where all parameters are trained."""
    if settings.adapter.kind == "none":
        return None
    return adapters.plan(settings.adapter, settings.model)


def attached(
    settings: Settings, adapter: Adapter | None, base: Any, params: Any, key: Any = None
) -> Any:
    """Return the parameters of the model: an adapter's around `base`, or themselves."""
    if adapter is None:
        return params
    own = None if key is None else jax.random.fold_in(key, DROPOUT)
    return adapters.attach(base, replace(adapter, params=params), settings.model, key=own)


def trained(settings: Settings) -> tuple[tree.Tree, tree.Tree]:
    """Return what is trained, as ShapeDtypeStructs, and the letters of its axes."""
    model, beside = settings.model, adapter(settings)
    if beside is None:
        return api.abstract(model), api.axes(model)
    return adapters.abstract(beside, model), adapters.axes(beside, model)


def base(settings: Settings) -> Any:
    """Return the parameters beneath an adapter as ShapeDtypeStructs; None without one."""
    if settings.adapter.kind == "none":
        return None
    params = api.abstract(settings.model)
    small = lambda params: quantise(params, settings.model, settings.adapter.base)  # noqa: E731
    return jax.eval_shape(small, params)


def state(settings: Settings) -> Any:
    """Return the training state as ShapeDtypeStructs."""
    params, key = trained(settings)[0], jax.random.key(1)  # known without being drawn
    make = lambda params: train_state(settings, params, rule(settings), key)  # noqa: E731
    return jax.eval_shape(make, params)


def train_state(settings: Settings, params: Any, rule: Any, key: Any) -> states.State:
    """Return the training state before the first step, with a clip where that adapts."""
    state, privacy = states.train_state(params, rule, key), settings.train.privacy
    return state if privacy.quantile is None else replace(state, clip=jnp.float32(privacy.clip))


def rule(settings: Settings) -> optax.GradientTransformation:
    """Return the optimizer of a run's model."""
    rate = settings.model.experts.balance_rate
    return optimizer.make(settings.train, trained(settings)[1], balance_rate=rate)


def fresh(settings: Settings, rule: optax.GradientTransformation) -> states.State:
    """Return a training state before the first step."""
    params, beside = api.init(settings.model, jax.random.key(0)), adapter(settings)
    if beside is not None:
        params = adapters.init(beside, settings.model, params, jax.random.key(2))
    return train_state(settings, params, rule, jax.random.key(1))


def fresh_base(settings: Settings, mesh: Any) -> Any:
    """Return drawn parameters beneath an adapter, where they live; None without one."""
    model = settings.model
    if settings.adapter.kind == "none":
        return None
    where = mesh and place.state_shardings(mesh, api.abstract(model), api.axes(model))
    make = jax.jit(lambda: api.init(model, jax.random.key(0)), out_shardings=where)
    params = place.under(mesh, make)()
    return place.under(mesh, quantise)(params, model, settings.adapter.base)


def flops_per_token(settings: Settings) -> float:
    """Return training FLOPs per token, an adapter's among them (`train.flops`)."""
    if settings.adapter.kind == "none":
        return flops.per_token(settings.model)
    return flops.per_token(settings.model, beside=tree.count(trained(settings)[0]))


def batch(settings: Settings) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the global batch as ShapeDtypeStructs, without what only the loop reads."""
    rows, wanted = settings.train.batch, settings.objective
    width = source = settings.row_length
    if wanted.name == "pairs" and settings.model.topology == "encoder_decoder":
        source, width = wanted.source or width, wanted.target or width
    targets = 1 if wanted.name == "classes" else width
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
        ("tokens", "segments", "positions"), (rows, width)
    )
    shapes |= dict.fromkeys(("targets", "weights"), (rows, targets))
    if settings.model.topology == "encoder_decoder":
        shapes |= dict.fromkeys(("source", "source_segments", "source_positions"), (rows, source))
    elif wanted.name == "prefix":
        shapes["prefix"] = (rows, width)
    if wanted.name in PREFERENCES:
        texts = ("tokens", "targets", "segments", "positions", "weights")
        shapes = dict.fromkeys(texts, (rows, 2, width))
        shapes |= {"reference": (rows, 2)} if settings.preference.has_reference else {}
        shapes[LABEL if wanted.name == "feedback" else MARGIN] = (rows,)
    if wanted.name == "policy" and settings.distill.teacher is None:
        shapes["advantage"] = (rows,)
        shapes |= {"old": (rows, width)} if settings.policy.needs_old else {}
        shapes |= {"reference": (rows, width)} if settings.policy.beta else {}
    if settings.train.federated.on:
        shapes[LOST] = (rows,)
    if settings.distill.teacher is not None:
        top = settings.distill.top
        shapes["teacher"] = (rows, width, settings.model.V if top is None else top + 1)
        shapes |= {} if top is None else {"teacher_ids": (rows, width, top)}
        pairs, model = len(settings.distill.layers), settings.model
        if settings.distill.hidden:
            shapes["teacher_hidden"] = (rows, pairs, width, model.d_model)
        if settings.distill.attention:
            shapes["teacher_attention"] = (rows, pairs, model.heads, width, width)
    real = ("weights", "reference", "old", "advantage", LABEL, MARGIN, LOST)
    real += ("teacher", "teacher_hidden", "teacher_attention")
    kinds: dict[str, Any] = dict.fromkeys(real, jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(shape, kinds.get(name, jnp.int32))
        for name, shape in shapes.items()
    }
