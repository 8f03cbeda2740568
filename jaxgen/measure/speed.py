"""Compile time, run time and memory of jitted functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgen.errors import ConfigError


def compile_timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, int | None]:
    """Return (program, seconds to compile, peak bytes) for these arguments.

    Bytes are arguments, results and temporaries as XLA plans them; None where it gives no plan.
    """
    begin = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - begin
    plan = program.memory_analysis()
    sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    held = None if plan is None else int(sum(getattr(plan, name) for name in sizes))
    return program, seconds, held


def seconds(function: Callable[[], Any], repeats: int) -> np.ndarray:
    """Return the seconds [repeats] of blocking calls after one warm-up.

    Raises ConfigError unless repeats >= 1.
    """
    if repeats < 1:
        raise ConfigError(f"repeats={repeats} must be at least 1")
    jax.block_until_ready(function())
    durations = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        durations.append(time.perf_counter() - begin)
    return np.asarray(durations)
