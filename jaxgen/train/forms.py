"""One training step in the three forms that JAX users meet: jit, shard_map and pmap.

All wrap the same pure `train_step`. With jit the compiler places the collectives; in shard_map
each is written out (gathers of weights in `mesh.gather`, sums here), and tensor and sequence axes
are still the compiler's; pmap is the old way, for parameters that are whole on every device.
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
from jaxgen.train import accumulate
from jaxgen.train.losses import Loss
from jaxgen.train.options import options
from jaxgen.train.state import State

Step = Callable[[State, Mapping[str, np.ndarray]], tuple[State, dict[str, Any]]]
ROWS = ("data", "fsdp")  # the mesh axes that a batch's rows are dealt out over


def make(form: str, step: Callable, mesh: Mesh | None, shardings: Any, rows: int) -> Step:
    """Return the compiled step of (state, this process's batch); the state is consumed.

    step: `train_step` with its options fixed. shardings: of the state (`place.state_shardings`).
    rows: of the global batch. Without a mesh all forms are plain jit. Raises ConfigError for a
    form that this number of processes has no use for.
    """
    if mesh is None:
        return jax.jit(step, donate_argnums=0, compiler_options=asked(form, mesh))
    return FORMS[form](step, mesh, shardings, rows)


def program(form: str, step: Callable, mesh: Mesh, shardings: Any) -> Any:
    """Return the jitted step of (state, global batch), to call or to lower under the mesh.

    ConfigError for pmap, whose program is made of devices that are here.
    """
    if form == "pmap":
        raise ConfigError("form=pmap cannot be compiled for devices that are not here; use jit")
    whole = NamedSharding(mesh, PartitionSpec())
    spread = _by_hand(step, mesh, shardings) if form == "shard_map" else step
    return jax.jit(
        spread,
        donate_argnums=0,
        out_shardings=(shardings, whole),
        compiler_options=asked(form, mesh),
    )


def asked(form: str, mesh: Mesh | None) -> dict[str, bool]:
    """Return the compiler options of a form's program; pmap takes none."""
    if mesh is None:
        return options(jax.default_backend())
    return {} if form == "pmap" else options(mesh.devices.flat[0].platform)


def _jit(step: Callable, mesh: Mesh, shardings: Any, rows: int, form: str = "jit") -> Step:
    compiled = program(form, step, mesh, shardings)

    def placed(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, dict[str, Any]]:
        return compiled(state, place.place_batch(mesh, batch, rows))

    return place.under(mesh, placed)


def _by_hand(step: Callable, mesh: Mesh, shardings: Any) -> Callable:
    """Return the step with the collectives of rows and fsdp written out."""
    specs = jax.tree.map(lambda sharding: _manual(sharding.spec), shardings.params)
    dealt = PartitionSpec(ROWS)

    def merge(result: Loss, grads: Any) -> tuple[Loss, Any]:
        sums: Any = jax.lax.psum((result.total, result.weight, result.metrics), ROWS)
        total, weight, metrics = sums
        # The gradient of a gathered weight comes back scattered, summed over fsdp already.
        grads = jax.tree.map(
            lambda grad, spec: jax.lax.psum(grad, "data" if "fsdp" in spec else ROWS), grads, specs
        )
        return Loss(total, weight, result.nll, metrics), grads

    def gradients(loss, params, config, batch, key, *, accumulate: int) -> tuple[Loss, Any]:
        def local(params, batch, key):
            options = {"accumulate": accumulate, "merge": merge}
            result, grads = _gradients(loss, params, config, batch, key, **options)
            return tuple(result), grads

        whole, spread = PartitionSpec(), jax.tree.map(lambda x: _rows(x, dealt), batch)
        summed: Any = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(specs, spread, whole),
            out_specs=((whole, whole, dealt, whole), specs),
            axis_names=set(ROWS),
            check_vma=False,
        )(params, batch, key)
        return Loss(*summed[0]), summed[1]

    return partial(step, gradients=gradients)


def _rows(x: Any, dealt: PartitionSpec) -> PartitionSpec:
    """Return how a part of a batch is spread: a number is whole everywhere."""
    return dealt if np.ndim(x) else PartitionSpec()


def _manual(spec: PartitionSpec) -> PartitionSpec:
    """Return the part of a spec that concerns the axes written by hand."""
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

    def dealt(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, dict[str, Any]]:
        parts = {n: x.reshape(len(devices), -1, *x.shape[1:]) for n, x in batch.items()}
        return mapped(state, parts)

    return dealt


_gradients = accumulate.gradients
FORMS = {"jit": _jit, "shard_map": partial(_jit, form="shard_map"), "pmap": _pmap}
