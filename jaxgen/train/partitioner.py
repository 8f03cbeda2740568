"""Partitions a training step over the mesh with jit, shard_map or pmap (`mesh.form`).

All three wrap the same pure `train_step`. With jit the compiler places the collectives. With
shard_map the data and fsdp collectives are explicit (weights gathered in `mesh.gather`, sums
here), and the compiler places those of the tensor and sequence axes. With pmap, the older API,
parameters are replicated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import ConfigError
from jaxgen.mesh import place
from jaxgen.ops.cpu import compile_options
from jaxgen.train import accumulate
from jaxgen.train.losses import Loss
from jaxgen.train.state import State

Step = Callable[[State, Mapping[str, np.ndarray]], tuple[State, dict[str, Any]]]
ROWS = ("data", "fsdp")  # the mesh axes that a batch's rows are sharded over


def make_step(
    form: str,
    step: Callable,
    mesh: Mesh | None,
    shardings: Any,
    rows: int,
    base: Any = None,
) -> Step:
    """Return the compiled step of (state, this process's batch); the state is consumed.

    step: `train_step` with its options fixed. shardings: of the state (`place.state_shardings`).
    rows: of the global batch. base: a further argument of `step`, where it lives, which no step
    changes; of form jit alone. Without a mesh every form is plain jit. Raises ConfigError for pmap
    in several processes.
    """
    more = () if base is None else (base,)
    if mesh is None:
        options = compile_options_for(form, mesh)
        compiled = jax.jit(step, donate_argnums=0, compiler_options=options)
        return (lambda state, batch: compiled(state, batch, *more)) if more else compiled
    assert not more or form == "jit", form
    if more:
        return _jit(step, mesh, shardings, rows, more=more)
    return PARTITIONERS[form](step, mesh, shardings, rows)


def jit_step(form: str, step: Callable, mesh: Mesh, shardings: Any) -> Any:
    """Return the jitted step of (state, global batch), to call or to lower under the mesh.

    Raises ConfigError for pmap, which compiles for local devices only.
    """
    if form == "pmap":
        raise ConfigError("form=pmap cannot be compiled for devices that are not here; use jit")
    replicated = NamedSharding(mesh, PartitionSpec())
    spread = _shard_map_step(step, mesh, shardings) if form == "shard_map" else step
    return jax.jit(
        spread,
        donate_argnums=0,
        out_shardings=(shardings, replicated),
        compiler_options=compile_options_for(form, mesh),
    )


def compile_options_for(form: str, mesh: Mesh | None) -> dict[str, bool]:
    """Return the XLA options for a form's program; pmap takes none."""
    if mesh is None:
        return compile_options.for_platform(jax.default_backend())
    return {} if form == "pmap" else compile_options.for_platform(mesh.devices.flat[0].platform)


def _jit(
    step: Callable,
    mesh: Mesh,
    shardings: Any,
    rows: int,
    form: str = "jit",
    more: tuple[Any, ...] = (),
) -> Step:
    compiled = jit_step(form, step, mesh, shardings)

    def global_step(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, dict[str, Any]]:
        return compiled(state, place.place_batch(mesh, batch, rows), *more)

    return place.under(mesh, global_step)


def _shard_map_step(step: Callable, mesh: Mesh, shardings: Any) -> Callable:
    """Return the step with explicit collectives over the data and fsdp axes."""
    specs = jax.tree.map(lambda sharding: _manual(sharding.spec), shardings.params)
    sharded = PartitionSpec(ROWS)

    def merge(result: Loss, grads: Any) -> tuple[Loss, Any]:
        sums: Any = jax.lax.psum((result.total, result.weight, result.metrics), ROWS)
        total, weight, metrics = sums
        # The gradient of a gathered weight is already summed and scattered over fsdp.
        grads = jax.tree.map(
            lambda grad, spec: jax.lax.psum(grad, "data" if "fsdp" in spec else ROWS), grads, specs
        )
        return Loss(total, weight, result.nll, metrics), grads

    def gradients(loss, params, config, batch, key, *, accumulate: int) -> tuple[Loss, Any]:
        def local(params, batch, key):
            options = {"accumulate": accumulate, "merge": merge}
            result, grads = _gradients(loss, params, config, batch, key, **options)
            return tuple(result), grads

        replicated, spread = PartitionSpec(), jax.tree.map(lambda x: _rows(x, sharded), batch)
        summed: Any = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, spread, replicated),
            out_specs=((replicated, replicated, sharded, replicated), specs),
            axis_names=set(ROWS),
            check_vma=False,
        )(params, batch, key)
        return Loss(*summed[0]), summed[1]

    return partial(step, gradients=gradients)


def _rows(x: Any, sharded: PartitionSpec) -> PartitionSpec:
    """Return the spec of an entry of a batch: rows are sharded, a scalar is replicated."""
    return sharded if np.ndim(x) else PartitionSpec()


def _manual(spec: PartitionSpec) -> PartitionSpec:
    """Return the fsdp part of a spec, whose collectives are explicit."""
    return PartitionSpec(*("fsdp" if part and "fsdp" in part else None for part in spec))


def _pmap(step: Callable, mesh: Mesh, shardings: Any, rows: int) -> Step:
    if jax.process_count() > 1:
        raise ConfigError(
            f"form=pmap runs in one process, but there are {jax.process_count()}; use form=jit"
        )
    devices = list(mesh.devices.flat)

    def merge(result: Loss, grads: Any) -> tuple[Loss, Any]:
        sums = (result.total, result.weight, result.metrics, grads)
        total, weight, metrics, grads = jax.lax.psum(sums, "data")
        rows = jax.lax.all_gather(result.nll, "data", tiled=True)
        return Loss(total, weight, rows, metrics), grads

    local = partial(step, gradients=partial(_gradients, merge=merge))

    mapped: Any = jax.pmap(
        local, axis_name="data", in_axes=(None, 0), out_axes=None, devices=devices
    )

    def sharded(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, dict[str, Any]]:
        parts = {n: x.reshape(len(devices), -1, *x.shape[1:]) for n, x in batch.items()}
        return mapped(state, parts)

    return sharded


_gradients = accumulate.gradients
PARTITIONERS = {"jit": _jit, "shard_map": partial(_jit, form="shard_map"), "pmap": _pmap}
