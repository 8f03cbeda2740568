"""A few real steps on the machine at hand, in a process of their own."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgen import settings as sets
from jaxgen.errors import BusyError
from jaxgen.profile.chips import Chip
from jaxgen.run import privacy, shapes
from jaxgen.run.settings import Settings, build_settings


@dataclass(frozen=True)
class Measured:
    """What steps took, after the first: seconds of the median one, bytes of one device's peak."""

    steps: int
    seconds: float
    memory: float
    compiling: float


def machine(settings: Settings) -> tuple[Chip, int]:
    """Return (chip, how many) of this machine, as a short probe in another process finds them."""
    return _elsewhere(_machine, settings.model.compute_dtype)


def steps(settings: Settings, count: int) -> Measured:
    """Return what `count` real training steps need here; BusyError if they die of it.

    Tokens are drawn at random: neither a tokenizer nor a corpus is read.
    """
    return _elsewhere(_steps, sets.as_dict(settings), count)


def _elsewhere(function: Any, *arguments: Any) -> Any:
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise BusyError(
                "the process that ran the steps was killed, most likely for want of memory; "
                "plan without them: --figures analytic"
            ) from None


def _machine(dtype: str) -> tuple[Chip, int]:
    import jax

    from jaxgen.plan import probe

    return probe.chip(dtype), len(jax.devices())


def _steps(mapping: dict[str, Any], count: int) -> Measured:
    # The allocator is left as it is: tuned (`host`), it keeps what it once had, and its peak says
    # nothing of what a step needs.
    import jax

    from jaxgen.mesh import device_mesh, place
    from jaxgen.ops.cpu import allocator
    from jaxgen.plan import probe
    from jaxgen.run.step import step_of
    from jaxgen.train import partitioner

    settings = privacy.for_plan(build_settings(mapping))
    mesh = device_mesh.make_mesh(settings.mesh)
    axes, state = shapes.trained(settings)[1], shapes.state(settings)
    shardings = None if mesh is None else place.state_shardings(mesh, state, axes)
    rule = shapes.rule(settings)
    step = partitioner.make_step(
        *(settings.mesh.form, step_of(settings, rule), mesh, shardings, settings.train.batch),
        shapes.fresh_base(settings, mesh),
    )
    batch = _random(settings)
    begin = place.under(
        mesh, jax.jit(lambda: shapes.fresh(settings, rule), out_shardings=shardings)
    )
    start = time.perf_counter()
    # Compiling takes memory too, on a CPU more than small models do: it is done and given back.
    jax.block_until_ready(step(begin(), batch))
    compiling = time.perf_counter() - start
    peak = probe.Peak()
    state, times = begin(), []
    for _ in range(count):
        allocator.pause(np.inf)
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return Measured(count, float(np.median(times)), peak.bytes(), compiling)


def _random(settings: Settings) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes.batch(settings).items():
        if name.endswith("positions"):
            array = np.broadcast_to(np.arange(shape.shape[-1]), shape.shape)
        elif name in ("tokens", "source", "targets"):
            kinds = settings.model.classes if name == "targets" else None
            array = rng.integers(0, kinds or settings.model.V, shape.shape)
        else:
            array = np.ones(shape.shape)
        arrays[name] = np.ascontiguousarray(array.astype(shape.dtype))
    return arrays
