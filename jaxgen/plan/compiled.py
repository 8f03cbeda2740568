"""The real training and decoding steps, compiled ahead of time for chips that are not here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.mesh import device_mesh, place, rules
from jaxgen.models import api, serving
from jaxgen.plan import hlo
from jaxgen.profile import program
from jaxgen.run import privacy, shapes
from jaxgen.run.settings import Settings
from jaxgen.run.step import step_of
from jaxgen.text.model_steps import model_step
from jaxgen.train import partitioner


@dataclass(frozen=True)
class Program:
    """What the compiler says of one program on one device, in bytes."""

    name: str
    state: float  # arguments that are consumed and written anew: parameters, optimizer, cache
    given: float  # other arguments
    temporary: float
    results: float  # outside of the state
    code: float
    flops: float | None  # each loop's body counted once; None where the compiler does not count
    traffic: dict[str, float]  # bytes sent in all turns of the loops, by kind of collective
    text: program.Program  # its operations
    seconds: float  # of compiling

    @property
    def total(self) -> float:
        """Bytes of the device's memory at the program's peak."""
        return self.state + self.given + self.temporary + self.results + self.code


def training(settings: Settings, devices: list[Any]) -> Program:
    """Return the Program of a training step on all devices."""
    mesh = device_mesh.mesh_of_sizes(settings.mesh.sizes(len(devices)), devices)
    model = settings.model
    state = shapes.state(settings)
    shardings = place.state_shardings(mesh, state, shapes.trained(settings)[1])
    base = shapes.base(settings)
    if base is not None:
        base = _placed(base, place.state_shardings(mesh, base, api.axes(model)))
    step = step_of(privacy.for_plan(settings), shapes.rule(settings))
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place.batch_sharding(mesh, x.shape))
        for name, x in shapes.batch(settings).items()
    }
    jitted = partitioner.jit_step(settings.mesh.form, step, mesh, shardings)
    more = () if base is None else (base,)
    return _compiled("training", mesh, jitted, (_placed(state, shardings), batch, *more))


def decoding(settings: Settings, devices: list[Any]) -> Program | None:
    """Return the Program of a decoding step, a row of context on each share of the rows.

    None for a model that writes no text.
    """
    model = settings.model
    if model.topology == "encoder" or model.head != "lm":
        return None
    mesh = device_mesh.mesh_of_sizes(settings.mesh.sizes(len(devices)), devices)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    memory = settings.objective.source or model.context
    slots = memory if model.topology == "encoder_decoder" else None
    params = api.abstract(model)
    shardings = place.state_shardings(mesh, params, api.axes(model))
    with jax.set_mesh(mesh):
        ready = jax.eval_shape(partial(serving.ready, config=model), params)
    unrolled = serving.is_unrolled(ready)
    if unrolled:  # then there is one device, which holds all
        shardings = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), ready)
    inputs = _placed(ready, shardings)
    # As a list of arrays: a Cache is made of arrays, and these are only shapes.
    empty = partial(api.empty_cache, model, rows, model.context, memory=slots, unrolled=unrolled)
    cache = [_as_cache(mesh, x) for x in jax.eval_shape(lambda: jax.tree.leaves(empty()))]
    tokens = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=place.batch_sharding(mesh, (rows,)))

    def step(leaves: list[jax.Array], params: Any, tokens: jax.Array) -> Any:
        cache = jax.tree.unflatten(jax.tree.structure(empty()), leaves)
        logits, cache = model_step(params, model)(tokens, cache)
        return jnp.argmax(logits, axis=-1), jax.tree.leaves(cache)

    cache_shardings = [x.sharding for x in cache]
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(tokens.sharding, cache_shardings))
    return _compiled("decoding", mesh, jitted, (cache, inputs, tokens))


def _compiled(name: str, mesh: Mesh, jitted: Any, arguments: tuple) -> Program:
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        executable = jitted.lower(*arguments).compile()
    memory, text = executable.memory_analysis(), program.parse(executable.as_text())
    assert memory is not None
    state = float(memory.alias_size_in_bytes)
    return Program(
        name=name,
        state=state,
        given=memory.argument_size_in_bytes - state,
        temporary=float(memory.temp_size_in_bytes),
        results=memory.output_size_in_bytes - state,
        code=float(memory.generated_code_size_in_bytes),
        flops=(executable.cost_analysis() or {}).get("flops"),
        traffic=hlo.traffic(text),
        text=text,
        seconds=time.perf_counter() - start,
    )


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )


def _as_cache(mesh: Mesh, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Return the shape of a cache's array, laid as decoding lays it: rows and heads are shared."""
    letters = {5: "LBKSH", 2: "BS", 1: "B"}[len(x.shape)]
    spec = rules.spec(letters, x.shape, rules.USED, mesh.shape)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
